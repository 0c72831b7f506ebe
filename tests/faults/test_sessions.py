"""Fault rows 4, 14, 19 and 27: brokers that restart, rubbish, races between sessions, floods."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import numpy as np
import pytest

from coordinator.admission import Admission
from coordinator.downlink import Downlink
from coordinator.fleet import Fleet as Population
from coordinator.registry import Registry
from edge_client.link import Link
from edge_client.trust import Trust
from protocol import mqtt, topics
from protocol.blobs import CHUNK_BYTES, ref_of
from protocol.errors import ProtocolError
from protocol.identity import Key
from protocol.messages import Join, Leave, Want, decode
from protocol.transport import Packet, Will
from tests.conftest import USERS
from tests.faults.memory import resident_bytes
from tests.faults.peers import COORDINATOR, TOPICS, Fleet, undisturbed
from tests.faults.record import full
from tools.chaos.proxy import FaultProxy

STATE = TOPICS.of(topics.STATE, "pi-1")


def connect(broker, client_id: str, will: Will | None = None):
    user = "coordinator" if client_id.startswith("coord") else "device"
    return mqtt.connect(broker.url, client_id, user, USERS[user], will, timeout_s=30)


# Row 4


def client_of(packet: Packet) -> str:
    address = TOPICS.parse(packet.topic)
    assert address is not None
    return str(address.client_id)


@pytest.mark.slow
def test_a_download_goes_on_after_the_broker_was_restarted(fault, broker):
    """Eight clients fetch one body from the coordinator's side of the wire while the broker is killed."""
    row, clients = fault(4), 8
    draw = random.Random(4)
    bodies = [np.random.default_rng(n).bytes(full(512, 128) * CHUNK_BYTES + 17) for n in range(full(10, 2))]
    coordinator = connect(broker, "coordinator")
    stop = threading.Event()

    def serve() -> None:
        down = Downlink(coordinator, TOPICS)
        for body in bodies:
            down.offer(body)
        coordinator.subscribe(TOPICS.root + "dev/+/want")
        while not stop.is_set():
            packet = coordinator.receive(0.02)
            if packet is not None:
                message = decode(packet.payload)
                if isinstance(message, Want):
                    down.want(client_of(packet), message, time.monotonic())
            down.tick(time.monotonic())

    server = threading.Thread(target=serve)
    server.start()
    transports = [connect(broker, f"pi-{n}") for n in range(clients)]
    links = [Link(one, TOPICS, f"pi-{n}", Trust(Key.generate(), 1)) for n, one in enumerate(transports)]
    try:
        for body in bodies:
            ref = ref_of(body)
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
                # What was in flight differs between them, up to a window; most comes again only to who missed it.
                most = full(105, 120) / 100 * len(body) + CHUNK_BYTES + 1000
                assert received <= most, f"{received / len(body):.3f} x the body"
    finally:
        stop.set()
        server.join()
        for transport in [*transports, coordinator]:
            transport.close()


# Row 19


class Coordinator:
    """What a coordinator knows of one client, at its door and behind it."""

    def __init__(self, broker, session: int) -> None:
        self.population, self.admission = (
            Population(),
            Admission(COORDINATOR, session, Registry(), Registry()),
        )
        self.transport = connect(broker, "coordinator")
        self.transport.subscribe(STATE)
        self.transport.publish(TOPICS.of(topics.HELLO), self.admission.hello(online=True), retain=True)

    def settle(self) -> None:
        """Take in states until none has come for a second."""
        while (packet := self.transport.receive(1.0)) is not None:
            with contextlib.suppress(ProtocolError):
                message = self.admission.open(TOPICS.parse(packet.topic), packet)
                if isinstance(message, Join):
                    self.population.join(message)
                elif isinstance(message, Leave):
                    self.population.leave(message)

    def sees(self, session: int) -> bool:
        found = self.population.present.get("pi-1")
        return found is not None and found.session == session


class Device:
    """One start of the client `pi-1`."""

    def __init__(self, broker, key: Key, session: int) -> None:
        trust = Trust(key, session, COORDINATOR.public)
        will = Will(STATE, lambda nth: trust.seal(STATE, Leave("pi-1", session, nth)))
        self.transport = connect(broker, "pi-1", will)
        self.link = Link(self.transport, TOPICS, "pi-1", trust)
        self.link.announce(Join("pi-1", session, 10, "peer", "none", "peer", "none"))

    def live(self, seconds: float) -> None:
        """Do what a waiting client does."""
        self.link.next_order(seconds)


@pytest.mark.slow
def test_a_client_that_is_back_at_once_is_never_taken_for_gone(fault, broker, monkeypatch):
    """Killed and started again: the will of the old connection comes before, between or after the new states."""
    # A process that is gone does not connect again, however late its end comes here.
    monkeypatch.setattr(mqtt, "RECONNECT_S_MIN", 600.0)
    row, key, device = fault(19), Key.generate(), None
    first = Coordinator(broker, 1)
    races = full(400, 30)
    kills: list[threading.Thread] = []
    for session in range(1, races + 1):
        before, device = device, Device(broker, key, session)
        if before is not None:
            # Its socket may have been open still: the broker had to notice by itself.
            kills.append(threading.Thread(target=before.transport.kill))
            kills[-1].start()
        row.trials += 1
    for kill in kills:
        kill.join()
    first.settle()
    assert first.sees(races)
    first.transport.close()
    second = Coordinator(broker, 2)  # It hears what is retained, which may be a will, and says hello.
    device.live(1.0)
    second.settle()
    assert second.sees(races)
    second.transport.close()
    device.transport.close()


@pytest.mark.slow
def test_a_client_that_reconnects_is_never_taken_for_gone(fault, broker):
    """The same process loses its connection again and again, by a reset in the network."""
    row, first = fault(19), Coordinator(broker, 1)
    with FaultProxy("127.0.0.1", broker.port) as proxy:
        device = Device(proxy, Key.generate(), 7)
        for race in range(full(100, 4)):
            connections = device.transport.connections
            proxy.cut()
            until_s = time.monotonic() + 30
            while device.transport.connections == connections:
                assert time.monotonic() < until_s
                device.live(0.05)
            row.trials += 1
            if race % 5 == 0:
                first.settle()
                assert first.sees(7)
        device.live(0.5)
        first.settle()
        assert first.sees(7)
        device.transport.close()
    first.transport.close()


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
