"""Lost and double updates of a run, from what clients were told and what the coordinator wrote down.

A client's log has each receipt. The run folder has a line in devices.csv for each phase of each update
that was folded in, and the number of folds in rounds.csv. Lost: a receipt says accepted, and the round's
lines do not name the client, or fewer updates were folded than clients named. Double: a client's phase is
there twice, or more updates were folded than clients named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from coordinator.report import read_csv

_RECEIPT = re.compile(r"receipt round=(\d+) verdict=(\S+)")
WORK = ("train", "prune")  # Every update has exactly one of these phases.


class Tally(NamedTuple):
    """Updates."""

    accepted: int  # By receipts, each client and round once.
    lost: int
    double: int


def receipts(client_id: str, log: str) -> set[tuple[int, str]]:
    """Return (round, client) of each update that a client was told is accepted."""
    return {
        (int(number), client_id)
        for number, verdict in _RECEIPT.findall(log)
        if verdict in ("accepted", "duplicate")
    }


def tally(run: Path, told: Iterable[tuple[int, str]]) -> Tally:
    """Count over all closed rounds of a run folder; `told` is what clients were told is accepted."""
    lines = [row for row in read_csv(run / "devices.csv") if row["phase"] in WORK]
    written = Counter((int(row["round_number"]), row["client_id"]) for row in lines)
    folded = {int(row["round_number"]): int(row["updates"]) for row in read_csv(run / "rounds.csv")}
    closed = {one for one in told if one[0] in folded}
    lost = len(closed - set(written))
    double = sum(times - 1 for times in written.values())
    for number, updates in folded.items():
        named = sum(one[0] == number for one in written)
        lost += max(0, named - updates)
        double += max(0, updates - named)
    return Tally(len(closed), lost, double)
