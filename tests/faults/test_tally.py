"""Counting what is lost or double: a sound run has none, and each way to spoil it is seen."""

from __future__ import annotations

import pytest

from coordinator import service
from coordinator.aggregate import Accumulator
from tests.faults.peers import Fleet
from tests.faults.tally import receipts, tally

TOLD = {(1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "a")}  # Round 3 was under way.
DEVICES = ["1,a,train", "1,a,upload", "1,b,train", "2,a,prune", "2,b,prune"]
ROUNDS = ["1,2", "2,2"]


@pytest.mark.parametrize(
    ("devices", "rounds", "lost", "double"),
    [
        (DEVICES, ROUNDS, 0, 0),
        (DEVICES[:-1], ["1,2", "2,1"], 1, 0),  # A receipt, and no update.
        (DEVICES, ["1,2", "2,1"], 1, 0),  # Written down, and not folded.
        ([*DEVICES, "2,b,prune"], ROUNDS, 0, 1),  # Written down twice.
        (DEVICES, ["1,3", "2,2"], 0, 1),  # Folded twice.
        (DEVICES[:-1], ROUNDS, 1, 1),  # Another one's folded twice in its place.
    ],
)
def test_each_way_to_spoil_a_run_is_counted(tmp_path, devices, rounds, lost, double):
    (tmp_path / "devices.csv").write_text("round_number,client_id,phase\n" + "\n".join(devices) + "\n")
    (tmp_path / "rounds.csv").write_text("round_number,updates\n" + "\n".join(rounds) + "\n")
    found = tally(tmp_path, TOLD)
    assert (found.accepted, found.lost, found.double) == (4, lost, double)


def test_receipts_are_read_from_a_clients_log():
    log = (
        "INFO edge_client.daemon: receipt round=1 verdict=accepted \n"
        "INFO edge_client.daemon: receipt round=2 verdict=late \n"
        "INFO edge_client.daemon: receipt round=3 verdict=duplicate \n"
        "INFO edge_client.daemon: receipt round=3 verdict=duplicate \n"
    )
    assert receipts("a", log) == {(1, "a"), (3, "a")}


@pytest.mark.parametrize(("times", "lost", "double"), [(1, 0, 0), (0, 1, 0), (2, 0, 1)])
def test_a_coordinator_that_folds_one_update_never_or_twice_is_found_out(
    tmp_path, monkeypatch, times, lost, double
):
    """Not from made-up files: the coordinator itself is broken, and says accepted all the same."""
    fold, number = Accumulator.fold, 0

    def broken(self, vector, weight):
        nonlocal number
        number += 1
        for _ in range(times if number == 4 else 1):
            fold(self, vector, weight)

    monkeypatch.setattr(Accumulator, "fold", broken)
    monkeypatch.setattr(service, "FAREWELL_S", 0.0)
    with Fleet(tmp_path, size=100, rounds=3) as fleet:
        fleet.run()
    assert fleet.tally() == (9, lost, double)
