"""Row 30: a peer of the previous version still works, on either side.

The previous version is written down here with an independent MessagePack library, in the fields it had: it
signs nothing, knows no key, no ledger's name for a run and no size of chunks, which were 128 KiB. Bytes of its
messages are in tests/golden as well.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
import zlib

import msgpack
import numpy as np
import pytest

from protocol import codec
from protocol.blobs import CHUNK_BYTES
from protocol.messages import Receipt, Task, decode, encode
from protocol.sparse import Mask, SparseVector
from protocol.topics import BLOB_DOWN, BLOB_UP, FETCH, HELLO, STATE, TASK, UPDATE, WANT
from protocol.transport import LoopbackHub
from tests.faults.peers import BIAS, TOPICS, Fleet, Peer, by_rule, undisturbed
from tests.protocol.test_messages import MESSAGES

SIZE = 90_000  # In two chunks and a bit.
OLD_CHUNK_BYTES = 128 * 1024


def old_chunks(body: bytes) -> list[bytes]:
    pieces = [body[i : i + OLD_CHUNK_BYTES] for i in range(0, len(body), OLD_CHUNK_BYTES)]
    return [struct.pack("<II", index, zlib.crc32(piece)) + piece for index, piece in enumerate(pieces)]


class OldTask:
    """What the rule reads of a task."""

    def __init__(self, said: dict) -> None:
        self.round_number = said["round_number"]


class OldClient:
    """A device of the previous version: joins, fetches the weights, uploads by the rule of peer 2."""

    def __init__(self, fleet: Fleet, client_id: str) -> None:
        self.id, self._transport = client_id, fleet.connect(client_id)
        self.fetched: list[bytes] = []
        self.verdicts: list[str] = []
        for topic in TOPICS.client_filters(client_id):
            self._transport.subscribe(topic)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        join = {"type": "join", "client_id": self.id, "session": 1, "num_examples": 10}
        join |= dict.fromkeys(("runtime", "kernels", "profile", "energy_source"), "old")
        self._say(STATE, join)
        self.thread.start()

    def _say(self, kind: str, message: dict) -> None:
        self._transport.publish(TOPICS.of(kind, self.id), msgpack.packb(message), retain=kind == STATE)

    def _run(self) -> None:
        offered: dict[str, list[bytes]] = {}
        while True:
            packet = self._transport.receive(0.5)
            if packet is None:
                continue
            address = TOPICS.parse(packet.topic)
            said = msgpack.unpackb(packet.payload)
            if address.kind == TASK and said["type"] == "end":
                return
            if address.kind == TASK and said["type"] == "task":
                self.fetched.append(self._fetch(said["blobs"]["weights"]))
                body = by_rule(2, SIZE)(OldTask(said))
                digest = hashlib.sha256(body).hexdigest()
                offered = {digest: old_chunks(body)}
                update = {
                    "type": "update",
                    "client_id": self.id,
                    "session": 1,
                    "num_examples": 10,
                    "loss": 0.5,
                }
                update |= {key: said[key] for key in ("run", "round_number", "stage")}
                update |= {"num_steps": 1, "phases": [], "peak_rss_bytes": 1}
                self._say(UPDATE, update | {"body": {"digest": digest, "size": len(body)}})
            elif address.kind == TASK and said["type"] == "receipt":
                self.verdicts.append(said["verdict"])
            elif address.kind == FETCH:
                for index in said["chunks"]:
                    topic = TOPICS.of(BLOB_UP, self.id, said["digest"])
                    self._transport.publish(topic, offered[said["digest"]][index])

    def _fetch(self, ref: dict) -> bytes:
        topic = TOPICS.of(BLOB_DOWN, digest=ref["digest"])
        self._transport.subscribe(topic)
        number = -(-ref["size"] // OLD_CHUNK_BYTES)
        self._say(WANT, {"type": "want", "digest": ref["digest"], "chunks": list(range(number))})
        found: dict[int, bytes] = {}
        while len(found) < number:
            packet = self._transport.receive(5)
            assert packet is not None
            if packet.topic == topic:
                found[struct.unpack_from("<I", packet.payload)[0]] = packet.payload[8:]
        assert all(len(found[index]) == OLD_CHUNK_BYTES for index in range(number - 1))
        body = b"".join(found[index] for index in range(number))
        assert hashlib.sha256(body).hexdigest() == ref["digest"]
        return body


def test_an_old_client_takes_part_beside_new_ones(fault, tmp_path):
    row = fault(30)
    expected = undisturbed(tmp_path / "whole", size=SIZE, rounds=3)
    with Fleet(tmp_path / "mixed", size=SIZE, rounds=3, peers=2, fetches=True) as fleet:
        fleet.experiment.cohort.clients = 3
        old = OldClient(fleet, "peer-002")
        old.start()
        final = fleet.run()
        old.thread.join(10)
    np.testing.assert_array_equal(final.weights, expected)
    assert old.verdicts == ["accepted"] * 3
    vector = codec.decode(old.fetched[0], SIZE, SIZE - BIAS, {})
    assert vector.mask.nnz == SIZE
    row.trials, row.lost, row.double = 3, 0, 0


class OldCoordinator:
    """One round of the previous version's coordinator with one client."""

    def __init__(self, hub: LoopbackHub) -> None:
        self._transport = hub.connect("coordinator")
        for topic in TOPICS.coordinator_filters():
            self._transport.subscribe(topic)
        self._transport.publish(
            TOPICS.of(HELLO), msgpack.packb({"type": "hello", "online": True, "session": 1}), retain=True
        )

    def round(self, number: int, body: bytes) -> bytes:
        """Ask whoever joins; serve the weights; return the update's body."""
        digest, begin_s = hashlib.sha256(body).hexdigest(), time.monotonic()
        collected: dict[int, bytes] = {}
        update: dict = {}
        while time.monotonic() - begin_s < 20:
            packet = self._transport.receive(0.5)
            if packet is None:
                continue
            address = TOPICS.parse(packet.topic)
            if address.kind == BLOB_UP:
                index = struct.unpack_from("<I", packet.payload)[0]
                collected[index] = packet.payload[8:]
                if sum(map(len, collected.values())) == update["body"]["size"]:
                    found = b"".join(collected[index] for index in sorted(collected))
                    assert hashlib.sha256(found).hexdigest() == update["body"]["digest"]
                    facts = {"run": "run", "round_number": number, "digest": update["body"]["digest"]}
                    self._say(address.client_id, {"type": "receipt", "verdict": "accepted", **facts})
                    return found
                continue
            said = msgpack.unpackb(packet.payload)
            if said["type"] == "signed":  # It knows no such message.
                continue
            if said["type"] == "join":
                self._say(address.client_id, self._task(number, digest, len(body)))
            elif said["type"] == "want":
                for index in said["chunks"]:
                    self._transport.publish(TOPICS.of(BLOB_DOWN, digest=digest), old_chunks(body)[index])
            elif said["type"] == "update":
                update = said
                assert said["round_number"] == number
                # It asked for chunks by their number, and took them as they came.
                want = {"type": "want", "digest": said["body"]["digest"], "chunks": list(range(64))}
                topic = TOPICS.of(FETCH, address.client_id)
                self._transport.publish(topic, msgpack.packb(want))
        raise AssertionError("no update came")

    def _say(self, client_id: str, message: dict) -> None:
        self._transport.publish(TOPICS.of(TASK, client_id), msgpack.packb(message))

    def _task(self, number: int, digest: str, size: int) -> dict:
        ref = {"digest": digest, "size": size}
        training = {"local_epochs": 1, "batch_size": 8, "learning_rate": 0.1}
        task = {"type": "task", "run": "run", "round_number": number, "method": "fedavg", "settings": {}}
        task |= {"stage": "train", "training": training, "seed": 7, "deadline_s": 60.0}
        return task | {"artifact": ref, "blobs": {"weights": ref}, "values": "f32"}


def test_a_new_client_works_for_an_old_coordinator(fault):
    row = fault(30)
    hub = LoopbackHub()
    old = OldCoordinator(hub)
    peer = Peer("peer-000", hub.connect, by_rule(0, 10_000), fetches=True, obeys=None)
    rng = np.random.default_rng(1)
    weights = SparseVector(Mask.full(SIZE), rng.normal(0, 1, SIZE).astype(np.float32))
    body = codec.encode(weights, SIZE - BIAS, "f32")
    assert len(body) > 2 * CHUNK_BYTES
    peer.start()
    found = old.round(1, body)
    assert found == by_rule(0, 10_000)(OldTask({"round_number": 1}))
    row.trials, row.lost, row.double = 1, 0, 0


def test_the_protocols_version_is_in_every_topic():
    assert TOPICS.root.startswith("sf/1/")
    assert TOPICS.parse("sf/2/" + TOPICS.of(STATE, "a").removeprefix("sf/1/")) is None


@pytest.mark.parametrize("kind", [Task, Receipt])
def test_what_a_newer_version_adds_is_ignored(kind):
    message = next(one for one in MESSAGES.values() if isinstance(one, kind))
    raw = msgpack.unpackb(encode(message)) | {"invented_in_2031": [1, 2, 3]}
    assert decode(msgpack.packb(raw)) == message
