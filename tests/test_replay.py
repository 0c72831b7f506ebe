"""A federation on a wire that somebody else can write on: no access rules, recorded and forged messages."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator import reception, service
from coordinator.admission import Admission
from coordinator.experiment import CohortConfig, Experiment
from coordinator.registry import Device, Registry
from coordinator.report import RunFolder, read_csv
from coordinator.service import Coordinator
from edge_client.link import Link, Superseded
from edge_client.trust import Trust
from protocol import codec
from protocol.blobs import pack_chunk, ref_of
from protocol.errors import TransportError
from protocol.identity import Key
from protocol.messages import (
    End,
    Hello,
    Join,
    Leave,
    Receipt,
    Refusal,
    Signed,
    Task,
    Training,
    Update,
    decode,
    encode,
)
from protocol.topics import BLOB_UP, HELLO, STATE, TASK, UPDATE, Topics
from protocol.transport import Loopback, LoopbackHub, Packet, Transport, Will
from tests.faults.record import full
from tests.test_hostile_updates import LAYOUT, ONES, manifest

TOPICS = Topics("fleet")
BODY = codec.encode(ONES, LAYOUT.num_prunable, "f32")
CLIENTS = ("a", "b", "c")


@pytest.fixture(autouse=True)
def without_farewell(monkeypatch):
    """Nobody reports what its last upload cost."""
    monkeypatch.setattr(service, "FAREWELL_S", 0.0)


class Client:
    """The real link over a method that always uploads ones."""

    def __init__(
        self,
        connect: Callable[[str, Will], Transport],
        client_id: str,
        trust: Trust,
        before: Callable[[Task], None],
    ) -> None:
        state = TOPICS.of(STATE, client_id)
        will = Will(state, lambda nth: trust.seal(state, Leave(client_id, trust.session, nth)))
        self.link = Link(connect(client_id, will), TOPICS, client_id, trust)
        self.link.announce(Join(client_id, trust.session, 10, "fake", "none", "fake", "none"))
        self.client_id, self.session, self._before = client_id, trust.session, before
        self.receipts: list[Receipt] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while isinstance(order := self._next_order(), Task):
            self._before(order)
            update = Update(
                self.client_id,
                self.session,
                order.run,
                order.round_number,
                order.stage,
                10,
                self.link.offer(BODY),
                0.5,
                1,
                [],
                1,
            )
            try:
                self.receipts.append(self.link.deliver(update))
            except Superseded:
                continue
            except TransportError:
                return

    def _next_order(self) -> Task | End | None:
        try:
            return self.link.next_order(20)
        except TransportError:  # Closed, with the broker or by the test.
            return None

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


class Wire:
    """A hub, the list of devices, and a stranger that hears all and may say all."""

    def __init__(self, folder: Path) -> None:
        self.hub, self.folder = LoopbackHub(), folder
        self.keys = {name: Key.generate() for name in (*CLIENTS, "coordinator")}
        self.registry = Registry(folder / "fleet.db")
        for name in CLIENTS:
            self.registry.put(Device(name, self.keys[name].public))
        self.stranger: Loopback = self.hub.connect("stranger")
        self.stranger.subscribe("sf/#")
        self.recorded: list[Packet] = []

    def record(self) -> None:
        while (packet := self.stranger.receive(0)) is not None:
            self.recorded.append(packet)

    def say(self, kind: str, client_id: str, payload: bytes, digest: str = "") -> None:
        self.stranger.publish(TOPICS.of(kind, client_id, digest), payload)

    def federation(
        self,
        name: str,
        session: int,
        before: Callable[[Task], None],
        rounds: int = 2,
        names: tuple[str, ...] = CLIENTS,
        connect: Callable[[str, Will | None], Transport] | None = None,
    ) -> tuple[Coordinator, list[Client]]:
        connect = connect or self.hub.connect
        experiment = Experiment(
            artifact="",
            data="",
            rounds=rounds,
            method={"name": "fedavg"},
            training=Training(1, 1, 0.1),
            cohort=CohortConfig(clients=3, deadline_s=20, join_timeout_s=20),
        )
        coordinator = Coordinator(
            experiment,
            "run",
            manifest(),
            Path(),
            np.zeros(LAYOUT.size, np.float32),
            connect("coordinator", None),
            RunFolder(self.folder / name, experiment),
            None,
            admission=Admission(self.keys["coordinator"], self.registry.next_session(), self.registry),
        )
        public = self.keys["coordinator"].public
        clients = [Client(connect, one, Trust(self.keys[one], session, public), before) for one in names]
        return coordinator, clients

    def events(self, name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / name / "events.jsonl").read_text().splitlines()]


def nothing(task: Task) -> None:
    pass


def check_all_counted(wire: Wire, name: str, clients: list[Client], weights) -> None:
    """Every round has every client once, and nobody was blamed."""
    for client in clients:
        client.join()
        assert [receipt.verdict for receipt in client.receipts] == ["accepted"] * 2
    rows = read_csv(wire.folder / name / "rounds.csv")
    assert [(row["updates"], row["dropouts"], row["rejected"]) for row in rows] == [("3", "0", "0")] * 2
    np.testing.assert_array_equal(weights, 2.0)  # Twice the mean of ones.
    assert {event["event"] for event in wire.events(name)}.isdisjoint(
        {"rejected", "quarantined", "client-lost"}
    )


@pytest.mark.slow
def test_recorded_messages_change_nothing_also_after_a_restart(fault, tmp_path):
    row = fault(16)
    wire = Wire(tmp_path)
    coordinator, clients = wire.federation("first", 1, nothing)
    coordinator.run()
    for client in clients:
        client.join()
        client.link.leave()
    wire.record()
    said = [packet for packet in wire.recorded if "/dev/" in packet.topic]
    assert {packet.topic.rpartition("/")[2] for packet in said} >= {"state", "update", "task"}
    rng, replayed, num_each = random.Random(0), 0, full(1667, 300)

    def replay(task: Task) -> None:
        nonlocal replayed
        for packet in rng.choices(said, k=num_each):  # Three clients in two rounds.
            wire.stranger.publish(packet.topic, packet.payload)
            replayed += 1
            wire.stranger._queue.clear()

    coordinator, clients = wire.federation("second", 2, replay)
    final = coordinator.run()
    assert replayed >= full(10_000, 1800)
    check_all_counted(wire, "second", clients, final.weights)
    row.trials, row.lost, row.double = replayed, 0, 0  # The model says so: each update is in it once.
    turned = [event for event in wire.events("second") if event["event"] == "turned-away"]
    assert {event["client"] for event in turned} == set(CLIENTS)
    assert {event["reason"] for event in turned} <= {"said before"}


def test_flipped_bits_are_refused_and_drop_nobody(tmp_path):
    wire, rng = Wire(tmp_path), random.Random(0)

    def flip(task: Task) -> None:
        """Of what has been said so far in this very round, most of it not yet read by its receiver."""
        wire.record()
        said = [p for p in wire.recorded if p.topic.rpartition("/")[2] in ("state", "update", "task")]
        for packet in rng.choices(said, k=200):
            payload = bytearray(packet.payload)
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
            wire.stranger.publish(packet.topic, bytes(payload))
            wire.stranger._queue.clear()

    coordinator, clients = wire.federation("run", 1, flip)
    check_all_counted(wire, "run", clients, coordinator.run().weights)


FORGED = {
    "refusal": lambda task: (UPDATE, encode(Refusal("a", "run", task.round_number, "I, too, am a")), ""),
    "will": lambda task: (STATE, encode(Leave("a", 1, 1)), ""),
    "noise": lambda task: (UPDATE, b"\xc1" * 50, ""),
    "update": lambda task: (UPDATE, encode(update_of_nothing(task)), ""),
    # Chunks are not signed: this one has a sound CRC and wrong bytes.
    "chunk": lambda task: (BLOB_UP, pack_chunk(0, bytes(len(BODY))), ref_of(BODY).digest),
}


def update_of_nothing(task: Task) -> Update:
    return Update("a", 1, "run", task.round_number, task.stage, 10, ref_of(b"nothing"), 0.5, 1, [], 1)


@pytest.mark.parametrize("what", FORGED)
@pytest.mark.parametrize("signs", [False, True], ids=["unsigned", "signed"])
def test_a_device_that_speaks_as_another_harms_nobody(what, signs, fault, tmp_path):
    """The access rules of the broker are off: only the coordinator is left to notice."""
    wire, row = Wire(tmp_path), fault(17)
    forger = Trust(wire.keys["b"], 9)

    def forge(task: Task) -> None:
        kind, payload, digest = FORGED[what](task)
        if signs and what not in ("noise", "chunk"):
            payload = forger.seal(TOPICS.of(kind, "a", digest), decode(payload))
        for _ in range(5):
            wire.say(kind, "a", payload, digest)
            row.trials += 1

    coordinator, clients = wire.federation("run", 1, forge)
    check_all_counted(wire, "run", clients, coordinator.run().weights)
    row.lost = row.double = 0


def test_a_chunk_of_a_stranger_is_fetched_again(tmp_path):
    """It is there before the client's own, at the very moment when the coordinator asks."""
    wire = Wire(tmp_path)
    coordinator, clients = wire.federation("run", 1, nothing)
    begin, spoiled = coordinator._up.begin, []

    def race(client_id: str, ref, max_bytes: int) -> None:
        begin(client_id, ref, max_bytes)
        if len(spoiled) < 3:
            spoiled.append(coordinator._up.chunk(client_id, ref.digest, pack_chunk(0, bytes(len(BODY)))))

    coordinator._up.begin = race
    check_all_counted(wire, "run", clients, coordinator.run().weights)
    assert spoiled == [None] * 3


def test_made_up_names_fill_neither_memory_nor_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(reception, "MAX_REASONS", 50)
    wire = Wire(tmp_path)

    def make_up(task: Task) -> None:
        for number in range(60):
            wire.say(UPDATE, f"{task.round_number}-{number}", b"\xc1")

    coordinator, clients = wire.federation("run", 1, make_up)
    check_all_counted(wire, "run", clients, coordinator.run().weights)
    turned = [event for event in wire.events("run") if event["event"] == "turned-away"]
    assert len(turned) < 60
    assert turned[-1]["reason"] == "of many kinds"
    assert len(coordinator._reception._num_turned_away) == 51


def test_a_false_coordinator_is_not_obeyed(tmp_path):
    wire = Wire(tmp_path)
    false = Trust(Key.generate(), 1)

    def command(task: Task) -> None:
        for client_id in CLIENTS:
            topic = TOPICS.of(TASK, client_id)
            other = msgspec.structs.replace(task, round_number=77)
            for message in (
                End("run"),
                other,
                Receipt("run", task.round_number, ref_of(BODY).digest, "late"),
            ):
                wire.stranger.publish(topic, encode(message))
                wire.stranger.publish(topic, false.seal(topic, message))

    coordinator, clients = wire.federation("run", 1, command)
    check_all_counted(wire, "run", clients, coordinator.run().weights)


def test_a_revoked_client_is_sent_away_while_the_run_goes_on(tmp_path):
    wire = Wire(tmp_path)
    command = Registry(tmp_path / "fleet.db")  # As `sparsefleet fleet`, another connection to the list.

    def revoke(task: Task) -> None:
        if task.round_number == 1:
            command.put(Device("b", wire.keys["b"].public, "revoked", "stolen"))

    coordinator, _ = wire.federation("run", 1, revoke, rounds=3)
    coordinator.run()
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["updates"] for row in rows[1:]] == ["2", "2"]
    assert [event["client"] for event in wire.events("run") if event["event"] == "client-sent-away"] == ["b"]


def test_a_client_that_is_not_let_in_is_told_why(tmp_path, caplog):
    wire = Wire(tmp_path)
    wire.registry.put(Device("b", wire.keys["b"].public, "revoked", "stolen"))
    wire.registry.forget("c")
    coordinator, clients = wire.federation("run", 1, nothing)
    command = Registry(tmp_path / "fleet.db")

    def let_in() -> None:
        for name in ("b", "c"):
            command.put(Device(name, wire.keys[name].public))

    timer = threading.Timer(0.5, let_in)
    timer.start()
    check_all_counted(wire, "run", clients, coordinator.run().weights)
    said = [record.getMessage() for record in caplog.records if record.name == "edge_client.link"]
    assert any("reason=revoked: stolen" in text for text in said)
    assert any("not on the list. Pair it: sparsefleet fleet code" in text for text in said)


def test_a_client_tells_a_new_coordinator_that_it_is_there(tmp_path):
    wire = Wire(tmp_path)
    client = Client(wire.hub.connect, "a", Trust(wire.keys["a"], 1, wire.keys["coordinator"].public), nothing)
    wire.record()
    del wire.recorded[:]
    for session in (4, 4, 5):
        wire.stranger.publish(
            TOPICS.of(HELLO), Admission(wire.keys["coordinator"], session, wire.registry).hello(True)
        )
    said = [wire.stranger.receive(5) for _ in range(4)]
    assert [packet.topic for packet in said if packet].count(TOPICS.of(STATE, "a")) == 1
    client.link.transport.close()


def test_a_coordinator_of_version_0_1_is_spoken_to_without_signatures(tmp_path):
    """Its Hello has no key. A device that is paired signs all the same: somebody may pose as the old one."""
    wire, old = Wire(tmp_path), encode(Hello(online=True, session=1))
    wire.stranger.publish(TOPICS.of(HELLO), old, retain=True)
    for name, coordinator in (("a", None), ("b", wire.keys["coordinator"].public)):
        client = Client(wire.hub.connect, name, Trust(wire.keys[name], 1, coordinator), nothing)
        said = list(iter(lambda: wire.stranger.receive(0.5), None))
        joins = [
            decode(packet.payload) for packet in said if packet and packet.topic == TOPICS.of(STATE, name)
        ]
        assert isinstance(joins[-1], Signed if coordinator else Join)
        client.link.transport.close()
