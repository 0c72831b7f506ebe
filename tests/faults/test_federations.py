"""Fault rows 1, 3, 20 and 25: real clients and coordinators in processes of their own, killed and cut off."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coordinator.experiment import read
from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from protocol import artifact as artifacts
from protocol import mqtt
from protocol.messages import Join, Leave, Signed, decode
from protocol.topics import STATE, Topics
from tests.conftest import FLEET, ROOT, USERS, Federation
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

    def __init__(self, url: str, sees_retained: bool = False) -> None:
        """With `sees_retained` what was said before counts, too."""
        self.transport = mqtt.connect(url, "watch", "coordinator", USERS["coordinator"], timeout_s=30)
        self.transport.subscribe(Topics(FLEET).of(STATE, "x").replace("/x/", "/+/"))
        self._retained: dict[str, bytes] = {}
        while not sees_retained and (packet := self.transport.receive(0.3)) is not None:
            self._retained[packet.topic.split("/")[-2]] = packet.payload
        self.begin_s = time.monotonic()

    def until(self, kind: type, client_ids: set[str], timeout_s: float) -> float:
        """Wait until each has said so; return how long after the watch began."""
        missing = set(client_ids)
        while missing:
            left_s = timeout_s - (time.monotonic() - self.begin_s)
            assert left_s > 0, f"not seen within {timeout_s} s: {sorted(missing)}"
            packet = self.transport.receive(min(left_s, 0.5))
            message = decode(packet.payload) if packet and packet.payload else None
            if isinstance(message, Signed):
                message = decode(message.payload)
            known = message is None or self._retained.get(message.client_id) == packet.payload
            if isinstance(message, kind) and not known:
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
        with Watch(broker.url, sees_retained=True) as watch:
            row.recovered(watch.until(Join, ids, 10.0))
        row.trials += 1
    one.finish(180)
    found = count(one)
    row.lost, row.double = found.lost, found.double
    assert (found.lost, found.double) == (0, 0)
    # Everybody in every round; a receipt may be overtaken by the next task, which says the same.
    assert {int(line["updates"]) for line in read_csv(one.out / "rounds.csv")} == {clients}
    assert found.accepted >= 0.9 * clients * (2 * kills + 5)
    assert weights(one) == over_loopback(one)
    assert row.recovery_s <= 10


# Row 25


@pytest.mark.slow
@pytest.mark.mosquitto
def test_clients_are_back_soon_after_a_long_cut(fault, mosquitto, home, federate):
    """Nothing passes and nothing is refused, as with a pulled cable; then every connection is reset."""
    row, clients = fault(25), 4
    cut_s = full(600, 20)
    with FaultProxy("127.0.0.1", mosquitto.port, seed=25) as proxy:
        one = prepared(federate(home, clients), mosquitto, 8, proxy, deadline_s=cut_s + 300)
        begin(one)
        await_rounds(one, 3)
        connections = proxy.counts["connections"]
        proxy.stall(cut_s / 2)
        time.sleep(cut_s / 2)
        with Watch(mosquitto.url) as watch:  # Before anybody can come back.
            proxy.cut(cut_s / 2)
            time.sleep(cut_s / 2)
            attempts = proxy.counts["connections"] - connections
            watch.begin_s = time.monotonic()
            ids = {f"client-{n:03}" for n in range(clients)}
            row.recovered(watch.until(Join, ids, 30.0))
        one.finish(180)
    row.trials = 1
    row.is_partial = cut_s < 600
    found = count(one)
    row.lost, row.double = found.lost, found.double
    assert (found.lost, found.double) == (0, 0)
    # Not the bits of an undisturbed run: whoever is away long enough is lost, and its round closes without it.
    assert attempts <= clients * cut_s  # At most one a second each.


# Row 1


def import_s() -> float:
    """How long a client's interpreter takes now before it does anything: the machine's, not the client's."""
    begin_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tools.client"], cwd=ROOT, check=True)
    return time.monotonic() - begin_s


@pytest.mark.slow
@pytest.mark.mosquitto
def test_a_third_of_the_clients_killed_at_any_step(fault, mosquitto, home, federate):
    """Their rounds close, they are missed at once, and they are back soon after they are started again."""
    row, clients, killed = fault(1), full(20, 6), full(6, 2)
    one = prepared(federate(home, clients), mosquitto, 100_000, quorum=0.5, deadline_s=30)
    begin(one)
    await_rounds(one, 2, 180)
    draw = random.Random(1)
    for trial in range(full(4, 1)):
        await_rounds(one, 2 + 3 * trial)
        time.sleep(draw.uniform(0, 1.0))
        numbers = draw.sample(range(clients), killed)
        ids = {f"client-{n:03}" for n in numbers}
        with Watch(mosquitto.url) as watch:
            for number in numbers:
                one.kill(number)
            lost_s = watch.until(Leave, ids, 22.5)
            assert lost_s <= 22.5  # 1.5 keep-alives; a killed process' connection ends at once.
        closed = rounds_closed(one)
        await_rounds(one, closed + 1, 45)  # It ends by its deadline at the latest.
        for number in numbers:
            with Watch(mosquitto.url) as watch:
                one.start_client(number, "--energy", "none")
                back_s = watch.until(Join, {f"client-{number:03}"}, 60.0)
            row.recovered(max(back_s - import_s(), 0.0))
        row.trials += killed
    one.coordinator.send_signal(signal.SIGINT)
    one.coordinator.communicate(timeout=60)
    found = count(one)
    row.lost, row.double = found.lost, found.double
    assert (found.lost, found.double) == (0, 0)
    assert all(2 * int(line["updates"]) >= int(line["cohort"]) for line in read_csv(one.out / "rounds.csv"))
    assert row.recovery_s <= 5


# Row 20

SKEWED = """
import random, time
_real, _real_ns, _begin = time.time, time.time_ns, time.monotonic()
_draw = random.Random({seed})
_base = {years} * 31_557_600
def _offset():
    # Another clock every half second: forwards, backwards, by up to a year.
    _draw.seed(({seed}, int(2 * (time.monotonic() - _begin))).__hash__())
    return _base + _draw.uniform(-31_557_600, 31_557_600)
time.time = lambda: _real() + _offset()
time.time_ns = lambda: _real_ns() + int(_offset() * 1e9)
"""


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.parametrize("years", [-10, 10])
def test_clocks_that_are_years_off_and_step_change_nothing(fault, mosquitto, home, federate, years, tmp_path):
    """Each client's process has a clock of its own, and so has the coordinator's."""
    row, clients = fault(20), 3
    one = prepared(federate(home, clients), mosquitto, full(10, 3), deadline_s=120)
    folders = []
    for number in range(clients + 1):
        folder = tmp_path / f"clock-{number}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            SKEWED.format(seed=number, years=years if number % 2 else -years)
        )
        folders.append(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", folders[-1])
        one.start_coordinator("--out", str(one.out), password=USERS["coordinator"])
    for number in range(clients):
        one.client_environment = {"PYTHONPATH": folders[number]}
        one.start_client(number, "--energy", "none")
    one.finish(180)
    years_seen = {event["time"][:4] for event in one.events()}
    found = count(one)
    row.trials, row.lost, row.double = clients, found.lost, found.double
    assert found == (clients * (full(10, 3) + 1), 0, 0)
    assert weights(one) == over_loopback(one)
    logged = (one.folder / "client-000.log").read_text()
    assert str(time.localtime().tm_year) not in logged[:200], "the clock was not off"
    assert years_seen
