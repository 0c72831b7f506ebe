"""Fault rows 7, 9, 10, 11 and 12: what arrives is incomplete, damaged, out of order or made to explode."""

from __future__ import annotations

import json
import random
import struct
import time

import msgspec
import numpy as np
import pytest
import zstandard

from coordinator.admission import Admission
from coordinator.registry import Device, Registry
from edge_client.trust import Trust
from protocol import artifact, blobs, codec, messages
from protocol import header as header_of
from protocol.blob_store import BlobStore
from protocol.errors import ArtifactError, DigestMismatch, ProtocolError
from protocol.identity import Key
from protocol.sparse import Mask, SparseVector
from protocol.topics import Topics
from protocol.transport import Packet
from tests.faults.memory import taken
from tests.faults.record import full

rng = np.random.default_rng(0)
SIZE = 1000


def a_body(size: int = SIZE, values: str = "f32") -> bytes:
    vector = SparseVector(Mask.full(size), rng.standard_normal(size).astype(np.float32))
    return codec.encode(vector, size, values)


def a_message() -> bytes:
    """One of 4 KB: a list of chunks."""
    return messages.encode(messages.Want("0" * 64, [70_000 + i for i in range(1000)] + [1] * 24))


# Row 9


@pytest.mark.slow
def test_truncated_at_every_byte_it_is_refused(fault):
    row = fault(9)
    body, message = a_body(1100), a_message()
    chunk = blobs.pack_chunk(0, body)
    ref = blobs.ref_of(body)
    assert min(len(body), len(message), len(chunk)) > 4000

    def chunk_is_taken(data: bytes) -> None:
        if blobs.Assembly(ref, len(body)).add(data):
            raise AssertionError("a truncated chunk was taken for a whole one")

    for decode, frame in [
        (lambda data: codec.decode(data, 1100, 1100, {}), body),
        (messages.decode, message),
        (chunk_is_taken, chunk),
    ]:
        for length in range(len(frame)):
            cpu_s = min(refusal_s(decode, frame[:length], decode is chunk_is_taken) for _ in range(3))
            assert cpu_s < 1e-3, f"{length} bytes took {cpu_s * 1e3:.2f} ms"
            row.trials += 1


def refusal_s(decode, data: bytes, returns: bool) -> float:
    begin_s = time.thread_time()
    if returns:
        decode(data)
    else:
        with pytest.raises(ProtocolError):
            decode(data)
    return time.thread_time() - begin_s


# Row 10


@pytest.mark.slow
def test_flipped_bits_of_a_body_are_refused(fault):
    row = fault(10)
    body = rng.bytes(2 * blobs.CHUNK_BYTES + 3000)
    store = BlobStore(len(body))
    ref = store.put(body)
    chunks = [store.chunk(ref.digest, index) for index in range(3)]
    draw = random.Random(0)
    for _ in range(10_000):
        index = draw.randrange(3)
        damaged = bytearray(chunks[index])
        bit = draw.randrange(
            8 * (8 if draw.random() < 0.3 else len(damaged))
        )  # A third within the 8 bytes' header.
        damaged[bit // 8] ^= 1 << bit % 8
        assembly = blobs.Assembly(ref, len(body))
        if assembly.add(damaged):
            # Only its number was hit, and it is another chunk's: the SHA-256 of the whole tells.
            assert bit < 32
            for other, chunk in enumerate(chunks):
                if other != index:
                    assembly.add(chunk)
            if assembly.is_complete:
                with pytest.raises(DigestMismatch):
                    assembly.bytes()
        row.trials += 1


@pytest.mark.slow
def test_flipped_bits_of_a_signed_message_are_refused(fault):
    """At the coordinator's door, and at the device's."""
    row, draw = fault(10), random.Random(1)
    device, coordinator, place = Key.generate(), Key.generate(), Topics("lab")
    door = Admission(coordinator, 1, Registry())
    door.listed.put(Device("pi-1", device.public))
    trust = Trust(device, 1, coordinator.public)
    said = messages.Refusal("pi-1", "run", 3, "no memory")
    state, update, task = (place.of(kind, "pi-1") for kind in ("state", "update", "task"))
    join = messages.Join("pi-1", 1, 10, "runtime", "kernels", "profile", "energy")
    door.open(place.parse(state), Packet(state, trust.seal(state, join)))
    up = [(update, trust.seal(update, said)) for _ in range(10)]
    down = [(task, door.seal("pi-1", task, messages.End("run"))) for _ in range(10)]

    def at_the_door(topic: str, payload: bytes) -> messages.AnyMessage:
        return door.open(place.parse(topic), Packet(topic, payload))

    for number in range(10_000):
        topic, sound = draw.choice(up if number % 2 else down)
        damaged = bytearray(sound)
        bit = draw.randrange(8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            (at_the_door if number % 2 else trust.open)(topic, bytes(damaged))
        row.trials += 1
    # And all of them are good as they are.
    assert all(at_the_door(topic, sound) == said for topic, sound in up)
    assert all(trust.open(topic, sound) == messages.End("run") for topic, sound in down)


# Row 11


def exploded(body: bytes, section: int, expanded: int, declares: bool) -> bytes:
    """The body with a zstd frame of `expanded` zeros for one of its four sections."""
    header, start = header_of.read(body)
    frame = zstandard.ZstdCompressor(19, write_content_size=declares).compress(bytes(expanded))
    sections, parts = list(header.sections), []
    for number, (raw, coded) in enumerate(header.sections):
        parts.append(frame if number == section else body[start : start + coded])
        if number == section:
            sections[number] = (raw, len(frame))
        start += coded
    header = msgspec.structs.replace(header, sections=tuple(sections))
    return header_of.write(header) + b"".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("section", range(4))
@pytest.mark.parametrize("declares", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("lies", [False, True], ids=["honest-header", "lying-header"])
def test_a_zstd_bomb_takes_no_more_than_the_model_would(fault, section, declares, lies):
    """1 GiB in 32 KB, in each section; its length as declared in the body's header is possible, or the bomb's own."""
    row = fault(11)
    size = 1_000_000
    mask = Mask(np.flatnonzero(rng.random(size) < 0.1).astype(np.int32), size)
    sparse = SparseVector(mask, rng.standard_normal(mask.nnz).astype(np.float32))
    body = (
        codec.encode(sparse, size - 1, "f32")
        if mask.indices[-1] == size - 1
        else codec.encode(sparse, size, "f32")
    )
    num_prunable = header_of.read(body)[0].num_prunable
    bomb = exploded(body, section, 1 << 30, declares)
    if lies:
        header, start = header_of.read(bomb)
        sections = list(header.sections)
        sections[section] = (1 << 30, sections[section][1])
        bomb = header_of.write(msgspec.structs.replace(header, sections=tuple(sections))) + bomb[start:]
    cost = taken(lambda: refused(bomb, size, num_prunable))
    assert cost.bytes <= codec.max_body_bytes(size) + 16e6
    assert cost.cpu_s <= 0.1
    row.trials += 1
    row.grew(cost.bytes)


def refused(body: bytes, size: int, num_prunable: int) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(body, size, num_prunable, {})


# Row 12

MILLION = 1_000_000


def prefixed(packed: bytes, length: int | None = None) -> bytes:
    """What follows the magic of a body of version 2, with a true or another length."""
    return struct.pack("<3sBH", b"SFV", 2, min(len(packed) if length is None else length, 65535)) + packed


def update_with(phases: bytes) -> bytes:
    """An Update whose last fields are what the bomb says."""
    return b"\x82\xa4type\xa6update\xa6phases" + phases


BOMBS = {
    "empty arrays": b"\xdd" + (MILLION - 5).to_bytes(4, "big") + b"\x90" * (MILLION - 5),
    "empty maps": b"\xdd" + (MILLION - 5).to_bytes(4, "big") + b"\x80" * (MILLION - 5),
    "nested arrays": b"\x91" * MILLION,
    "nested maps": b"\x81\xa0" * (MILLION // 2),
    "a promised array": b"\xdd\xff\xff\xff\xff",
    "a promised map": b"\xdf\xff\xff\xff\xff",
    "a promised string": b"\xdb\xff\xff\xff\xff",
    "promised bytes": b"\xc6\xff\xff\xff\xff",
    "extensions": b"\xc9\xff\xff\xff\xff\x01" + bytes(1000),
    "as large as a message may be": b"\xdd" + (65_000).to_bytes(4, "big") + b"\x90" * 65_000,
    "nested as deep as a message may be": b"\x91" * 65_000,
    "unknown fields": b"\xdf" + (60_000 // 4).to_bytes(4, "big") + b"\xa1a\x91\xc0" * (60_000 // 4),
    "phases of nothing": update_with(b"\xdd" + (64_000).to_bytes(4, "big") + b"\x80" * 64_000),
    "phases of arrays": update_with(b"\xdd" + (64_000).to_bytes(4, "big") + b"\x90" * 64_000),
    "json arrays": b"[" * MILLION,
    "json objects": b'{"a":' * (MILLION // 5),
    "json list": b"[" + b"[]," * (MILLION // 3 - 1) + b"[]]",
    "json number": b"9" * MILLION,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_message_costs_next_to_nothing(fault, name):
    row, bomb = fault(12), BOMBS[name]
    for frame in (bomb, bomb[:65_536], prefixed(bomb), prefixed(bomb, 256)):

        def decode(frame: bytes = frame) -> None:
            with pytest.raises(ProtocolError):
                messages.decode(frame)
            with pytest.raises(ProtocolError):
                codec.decode(frame, SIZE, SIZE, {})
            with pytest.raises(ProtocolError):
                codec.describe(frame)

        costs = [taken(decode) for _ in range(2)]
        assert min(cost.bytes for cost in costs) <= 8e6
        assert min(cost.cpu_s for cost in costs) <= 0.05
        row.trials += 1
        row.grew(min(cost.bytes for cost in costs))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_manifest_is_refused(name, fault):
    """The coordinator's; it may have 4 MB, and is the one thing that is JSON."""
    row, bomb = fault(12), BOMBS[name]
    inside = json.dumps({"format": artifact.FORMAT, "model": "m"}).encode()[:-1] + b', "layout": ' + bomb
    for frame in (bomb, inside):

        def decode(frame: bytes = frame) -> None:
            with pytest.raises(ArtifactError):
                artifact.parse(frame)

        costs = [taken(decode) for _ in range(2)]
        assert min(cost.cpu_s for cost in costs) <= 0.05
        assert min(cost.bytes for cost in costs) <= 8e6
        row.trials += 1
        row.grew(min(cost.bytes for cost in costs))


# Row 7


@pytest.mark.slow
def test_chunks_of_many_transfers_in_any_order(fault):
    """Chunks of 1 KiB: 10^5 of the usual ones would be 13 GB. What is kept for each is the same."""
    row = fault(7)
    each, transfers = full(2000, 200), 50
    bodies = [rng.bytes(1024 * each - 7) for _ in range(transfers)]
    refs = [messages.BlobRef(blobs.ref_of(body).digest, len(body), 1024) for body in bodies]
    order = rng.permutation(each * transfers)

    def assemble() -> None:
        open_ = [blobs.Assembly(ref, ref.size) for ref in refs]
        for position in order.tolist():
            transfer, index = divmod(position, each)
            chunk = bodies[transfer][1024 * index : 1024 * (index + 1)]
            assert open_[transfer].add(blobs.pack_chunk(index, chunk))
        assert all(one.bytes() == body for one, body in zip(open_, bodies, strict=True))

    cost = taken(assemble)
    row.trials = order.size
    row.grew(cost.bytes)
    assert cost.bytes <= 2 * sum(map(len, bodies))
