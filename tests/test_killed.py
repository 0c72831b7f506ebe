"""kill -9, anywhere: the same round goes on, nothing is counted twice, and the end is bit-identical."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from coordinator.report import read_csv
from tests.faults.record import full
from tests.test_federation_processes import SPARSE, home, weights  # noqa: F401  A fixture.

pytestmark = pytest.mark.slow

ROUNDS = 10
METHODS = [
    SPARSE,
    {"name": "fedpai", "density": 0.2, "masks": "personal"},
    {"name": "proxskip", "density": 0.2},
    {"name": "topk", "density": 0.2},
]


@pytest.fixture
def make(federate, home):  # noqa: F811
    return lambda: federate(home, 3)


def settings(method: dict) -> dict:
    return {"momentum": 0.0} if method["name"] == "proxskip" else {}


def trained(one) -> list[tuple[str, int]]:
    """Who has trained in which round, as the clients say."""
    found = []
    for client_id in one.clients:
        lines = (one.folder / f"{client_id}.log").read_text().splitlines()
        rounds = [line.partition("round=")[2].split()[0] for line in lines if ": trained round=" in line]
        found += [(client_id, int(number)) for number in rounds]
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method['name']}-{method.get('masks', '')}")
def test_a_coordinator_killed_anywhere_goes_on_with_the_same_round(fault, make, method):
    row, kills = fault(5), full(13, 5)  # Of each method's run.
    whole = make()
    whole.write(method, rounds=ROUNDS, **settings(method))
    whole.start_coordinator("--out", str(whole.out))
    whole.start_clients()
    begin_s = time.monotonic()
    whole.finish()
    duration_s = time.monotonic() - begin_s

    rng = random.Random(method["name"])
    cut = make()
    cut.write(method, rounds=ROUNDS, **settings(method))
    cut.start_coordinator("--out", str(cut.out))
    cut.start_clients()
    cut.await_event(event="round-opened")
    for _ in range(kills):
        time.sleep(rng.uniform(0, duration_s / kills))
        if cut.coordinator.poll() is not None:
            break
        cut.coordinator.send_signal(signal.SIGKILL)
        cut.coordinator.communicate()
        accepted = accepted_in(cut.out)
        begin_s = time.monotonic()
        resumed = len([event for event in cut.events() if event["event"] == "run-resumed"])
        cut.start_coordinator("--resume", str(cut.out))
        while len([event for event in cut.events() if event["event"] == "run-resumed"]) == resumed:
            assert cut.coordinator.poll() is None, cut.coordinator.communicate()[1]
            time.sleep(0.02)
        row.trials += 1
        row.recovered(time.monotonic() - begin_s)  # Of which importing is most.
        assert row.recovery_s < full(3, 10)
        assert accepted <= accepted_in(cut.out)
    cut.finish()

    assert weights(cut.out) == weights(whole.out)
    rows = read_csv(cut.out / "rounds.csv")
    assert [int(row["round_number"]) for row in rows] == [
        int(row["round_number"]) for row in read_csv(whole.out / "rounds.csv")
    ]
    assert all(int(row["updates"]) == 3 and int(row["alarms"]) == 0 for row in rows)
    assert len(set(trained(cut))) == 3 * len(rows)
    twice = [entry for entry in set(trained(cut)) if trained(cut).count(entry) > 1]
    assert not twice, twice
    row.lost = row.double = 0  # The bits are the same.
    devices = read_csv(cut.out / "devices.csv")
    lines = [
        (row["round_number"], row["client_id"], row["phase"]) for row in devices if row["phase"] != "idle"
    ]
    assert len(lines) == len(set(lines))


def accepted_in(out: Path) -> set[tuple]:
    """What the ledger of a dead coordinator has; a copy is read, so that its log stays as it was."""
    import sqlite3

    copy = out.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        if (out / name).is_file():
            shutil.copy(out / name, copy)
    with sqlite3.connect(copy / "ledger.db") as database:
        return set(database.execute("SELECT client, base, digest FROM accepted"))
