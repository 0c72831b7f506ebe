"""Fault rows 4, 14, 19 and 27: brokers that restart, rubbish, races between sessions, floods."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import numpy as np
import pytest

from coordinator.fleet import Fleet as Population
from coordinator.transfers import Downlink
from edge_client.link import Link
from protocol import mqtt, topics
from protocol.blobs import CHUNK_BYTES, ref_of
from protocol.messages import Join, Leave, Want, decode, encode
from protocol.transport import Will
from tests.conftest import USERS
from tests.faults.memory import resident_bytes
from tests.faults.peers import TOPICS, Fleet, undisturbed
from tests.faults.record import full

STATE = TOPICS.of(topics.STATE, "pi-1")


def connect(broker, client_id: str, will: Will | None = None):
    user = "coordinator" if client_id.startswith("coord") else "device"
    return mqtt.connect(broker.url, client_id, user, USERS[user], will, timeout_s=30)


# Row 4


@pytest.mark.slow
def test_a_download_goes_on_after_the_broker_was_restarted(fault, broker):
    """Eight clients fetch one body from the coordinator's side of the wire while the broker is killed."""
    row, clients = fault(4), 8
    draw = random.Random(4)
    body = np.random.default_rng(4).bytes(256 * CHUNK_BYTES + 17)
    coordinator = connect(broker, "coordinator")
    stop = threading.Event()
    wanted_bytes: dict[str, int] = {}

    def serve() -> None:
        down = Downlink(coordinator, TOPICS)
        down.offer(body)
        coordinator.subscribe(TOPICS.root + "dev/+/want")
        while not stop.is_set():
            packet = coordinator.receive(0.02)
            if packet is not None:
                message = decode(packet.payload)
                if isinstance(message, Want):
                    down.want(message, time.monotonic())
            down.tick(time.monotonic())

    server = threading.Thread(target=serve)
    server.start()
    transports = [connect(broker, f"pi-{n}") for n in range(clients)]
    links = [Link(transport, TOPICS, f"pi-{n}") for n, transport in enumerate(transports)]
    ref = ref_of(body)
    try:
        for _ in range(full(10, 2)):
            found: dict[int, bytes] = {}
            before = [transport.received_bytes for transport in transports]

            def fetch(n: int) -> None:
                found[n] = links[n].fetch(ref, len(body))  # noqa: B023

            threads = [threading.Thread(target=fetch, args=(n,)) for n in range(clients)]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.05, 0.4))
            killed_s = time.monotonic()
            broker.stop()
            broker.start()
            for thread in threads:
                thread.join(120)
            row.recovered(time.monotonic() - killed_s)
            row.trials += 1
            assert all(found[n] == body for n in range(clients))
            for n, transport in enumerate(transports):
                received = transport.received_bytes - before[n]
                wanted_bytes[f"pi-{n}"] = received
                assert received <= 1.05 * len(body) + CHUNK_BYTES + 1000, (
                    f"{received / len(body):.3f} x the body"
                )
            time.sleep(1.5)  # What was published just now is not repeated for that long.
    finally:
        stop.set()
        server.join()
        for transport in [*transports, coordinator]:
            transport.close()


# Row 19


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "reconnected"])
def test_a_stale_will_never_makes_a_client_vanish(fault, broker, restarts):
    """A client vanishes without a farewell and is back at once: as a new session, or as the same one."""
    row = fault(19)
    population, coordinator = Population(), connect(broker, "coordinator")
    coordinator.subscribe(STATE)
    races, session, device = full(500, 30) // 2, 1, None
    try:
        for race in range(races):
            session += restarts
            mark = race + 1
            before = device
            device = connect(broker, "pi-1", Will(STATE, encode(Leave("pi-1", session))))
            device.publish(STATE, encode(join(session, mark)), retain=True)
            if before is not None:
                before.kill()  # Its socket was open still: the broker had to notice by itself.
            if race % 3 == 0:
                device.kill()
                device = connect(broker, "pi-1", Will(STATE, encode(Leave("pi-1", session))))
                device.publish(STATE, encode(join(session, mark)), retain=True)
            row.trials += 1
        settle(coordinator, population)
        assert "pi-1" in population.present
        assert population.present["pi-1"].session == session
    finally:
        for transport in (device, coordinator):
            if transport is not None:
                transport.close()


def join(session: int, num_examples: int) -> Join:
    return Join("pi-1", session, num_examples, "peer", "none", "peer", "none")


def settle(coordinator, population: Population) -> None:
    """Take in states until none has come for a second."""
    while (packet := coordinator.receive(1.0)) is not None:
        message = decode(packet.payload) if packet.payload else None
        if isinstance(message, Join):
            population.join(message)
        elif isinstance(message, Leave):
            population.leave(message)


# Row 27


def pid_of(broker) -> int:
    return broker.process.pid


@pytest.mark.slow
def test_a_flood_of_giant_connects_costs_little_and_rounds_go_on(fault, broker, tmp_path):
    row = fault(27)
    facts = {"size": 50_000, "rounds": 6, "peers": 3}
    before = resident_bytes(pid_of(broker))
    sockets: list[socket.socket] = []
    stop = threading.Event()

    def flood() -> None:
        """Sockets that announce 256 MB, each of which sends as fast as it is read."""
        while not stop.is_set():
            for one in list(sockets):
                with contextlib.suppress(OSError):
                    one.send(bytes(65536))
            time.sleep(0.01)
            row.grew(resident_bytes(pid_of(broker)) - before)

    for _ in range(100):
        one = socket.create_connection(("127.0.0.1", broker.port), 5)
        one.setblocking(False)
        one.send(b"\x10\xff\xff\xff\x7f\x00\x04MQTT\x04\x02\x00\x0f\x00\x04evil")
        sockets.append(one)
    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with Fleet(tmp_path / "run", url=broker.url, **facts) as fleet:
            weights = fleet.run().weights
    finally:
        stop.set()
        flooding.join()
        for one in sockets:
            one.close()
    row.trials = 100
    row.lost, row.double = fleet.tally()[1:]
    assert fleet.tally() == (18, 0, 0)
    assert weights.tobytes() == undisturbed(tmp_path / "undisturbed", **facts).tobytes()
    assert row.rss_growth_mb is not None
    assert row.rss_growth_mb <= 64
