"""Fault rows 1, 3, 20 and 25: real clients and coordinators in processes of their own, killed and cut off."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from coordinator.experiment import read
from edge_client.kernels import library_path
from export.export import export_model
from protocol import artifact as artifacts
from protocol import mqtt
from protocol.messages import Join, decode
from protocol.topics import STATE, Topics
from tests.conftest import FLEET, USERS, Federation
from tests.faults.record import full
from tests.faults.tally import receipts, tally
from tools.chaos.proxy import FaultProxy
from tools.simulate import simulate
from tools.split import split

MODEL = {"name": "fedpai", "density": 0.2}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small network, and the digits split among twenty clients."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("faults")
    export_model("mlp", (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=20, how="iid", alpha=1.0, seed=0)
    return folder


def prepared(one: Federation, broker, rounds: int, proxy: FaultProxy | None = None, **cohort) -> Federation:
    """Write the experiment; clients connect through the proxy, the coordinator does not."""
    one.url, one.fleet, one.password = (proxy or broker).url, FLEET, USERS["device"]
    one.write(MODEL, rounds=rounds, broker={"url": broker.url, "fleet": FLEET}, **cohort)
    return one


def begin(one: Federation) -> None:
    one.start_coordinator("--out", str(one.out), password=USERS["coordinator"])
    one.start_clients("--energy", "none")


def over_loopback(one: Federation) -> bytes:
    """The final weights of the same experiment in one process, where nothing goes wrong."""
    made = read(one.experiment)
    data = {f"client-{n:03}": one.home / "data" / f"client-{n:03}.npz" for n in range(one.num_clients)}
    final = simulate(made, data, one.folder / "loopback")
    manifest = artifacts.read(Path(made.artifact))
    return b"".join(value.tobytes() for value in manifest.layout.views(final.weights).values())


def weights(one: Federation) -> bytes:
    with np.load(one.out / "weights.npz") as stored:
        return b"".join(stored[name].tobytes() for name in stored.files)


def count(one: Federation):
    told = set()
    for client_id in one.clients:
        told |= receipts(client_id, (one.folder / f"{client_id}.log").read_text())
    return tally(one.out, told)


class Watch:
    """A connection of our own that sees clients announce themselves and vanish."""

    def __init__(self, url: str) -> None:
        self.begin_s = time.monotonic()
        self.transport = mqtt.connect(url, "watch", "coordinator", USERS["coordinator"], timeout_s=30)
        self.transport.subscribe(Topics(FLEET).of(STATE, "x").replace("/x/", "/+/"))

    def until(self, kind: type, client_ids: set[str], timeout_s: float, session: int = 0) -> float:
        """Wait until each has been seen so since the watch began; return after how many seconds."""
        missing = set(client_ids)
        while missing:
            left_s = timeout_s - (time.monotonic() - self.begin_s)
            assert left_s > 0, f"not seen within {timeout_s} s: {sorted(missing)}"
            packet = self.transport.receive(min(left_s, 0.5))
            message = decode(packet.payload) if packet and packet.payload else None
            if isinstance(message, kind) and message.session >= session:
                missing.discard(message.client_id)
        return time.monotonic() - self.begin_s

    def __enter__(self):
        """Watching already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.transport.close()


def rounds_closed(one: Federation) -> int:
    return sum(event["event"] == "round-closed" for event in one.events())


def await_rounds(one: Federation, number: int, timeout_s: float = 90.0) -> None:
    end_s = time.monotonic() + timeout_s
    while rounds_closed(one) < number:
        assert time.monotonic() < end_s, f"{rounds_closed(one)} of {number} rounds\n{one.logs()[-5000:]}"
        assert one.coordinator.poll() is None, one.coordinator.communicate()[1][-5000:]
        time.sleep(0.02)


# Row 3


@pytest.mark.slow
def test_a_broker_killed_in_the_middle_of_rounds_loses_nothing(fault, broker, home, federate):
    row, clients = fault(3), 8
    kills = full(20, 3)
    one = prepared(federate(home, clients), broker, rounds=2 * kills + 4, deadline_s=120)
    begin(one)
    ids, draw = {f"client-{n:03}" for n in range(clients)}, random.Random(3)
    await_rounds(one, 2)
    for kill in range(kills):
        await_rounds(one, 2 + kill)
        time.sleep(draw.uniform(0, 0.6))
        broker.stop()
        time.sleep(draw.uniform(0, 0.5))
        broker.start()
        with Watch(broker.url) as watch:
            row.recovered(watch.until(Join, ids, 10.0))
        row.trials += 1
    one.finish(180)
    found = count(one)
    row.lost, row.double = found.lost, found.double
    assert (found.lost, found.double) == (0, 0)
    assert found.accepted == clients * (2 * kills + 5)  # And round 0, which finds the mask.
    assert weights(one) == over_loopback(one)
    assert row.recovery_s <= 10
