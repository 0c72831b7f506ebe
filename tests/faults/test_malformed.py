"""Fault row 14: updates that are wrong in one way each. Rejected with their own reason, and the rounds go on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zstandard

from protocol import codec
from protocol import header as header_of
from protocol.indices import encode_part
from protocol.messages import Task
from protocol.sparse import Mask, SparseVector
from tests.faults.peers import BIAS, Fleet

SIZE, PRUNABLE = 1000 + BIAS, 1000
rng = np.random.default_rng(14)
SPARSE = Mask(
    np.concatenate([np.sort(rng.choice(PRUNABLE, 100, replace=False)), np.arange(PRUNABLE, SIZE)]).astype(
        np.int32
    ),
    SIZE,
)
VECTOR = SparseVector(SPARSE, rng.standard_normal(SPARSE.nnz).astype(np.float32))
FULL = SparseVector(Mask.full(SIZE), rng.standard_normal(SIZE).astype(np.float32))
GOOD, WHOLE = codec.encode(VECTOR, PRUNABLE, "f32"), codec.encode(FULL, PRUNABLE, "f32")


def parts_of(body: bytes) -> tuple[header_of.Header, list[bytes]]:
    header, start = header_of.read(body)
    sections = []
    for _, coded in header.sections:
        sections.append(body[start : start + coded])
        start += coded
    return header, sections


def joined(header: header_of.Header, sections: list[bytes]) -> bytes:
    return header_of.write(header) + b"".join(sections)


def with_facts(body: bytes = GOOD, **facts: object) -> bytes:
    header, sections = parts_of(body)
    return joined(msgspec.structs.replace(header, **facts), sections)


def with_section(number: int, section: bytes, raw_length: int | None = None, body: bytes = GOOD) -> bytes:
    """One section replaced; its length before compression is as declared, unless another is given."""
    header, sections = parts_of(body)
    lengths = list(header.sections)
    lengths[number] = (lengths[number][0] if raw_length is None else raw_length, len(section))
    sections[number] = section
    return joined(msgspec.structs.replace(header, sections=tuple(lengths)), sections)


def with_positions(positions: list[int], universe: int = PRUNABLE, count: int | None = None) -> bytes:
    """Whatever positions, coded as the format codes them."""
    coding, parameter, raw = encode_part(np.asarray(positions, np.int32), universe)
    row = struct.pack("<BBII", coding, parameter, len(positions) if count is None else count, len(raw))
    header, sections = parts_of(GOOD)
    nnz = len(positions) if count is None else count
    values = np.ones(nnz, np.float32)
    plain = codec.encode(SparseVector(SPARSE, VECTOR.values), PRUNABLE, "f32")
    assert plain == GOOD
    lengths = list(header.sections)
    lengths[0], lengths[1] = (len(row), len(row)), (len(raw), len(raw))
    lengths[2] = (4 * nnz, 4 * nnz)
    sections[0], sections[1], sections[2] = row, raw, values.tobytes()
    return joined(msgspec.structs.replace(header, nnz=nnz, sections=tuple(lengths)), sections)


def row_with(**facts: int) -> bytes:
    """The table of the one part, with another coding, parameter, count or length."""
    header, sections = parts_of(GOOD)
    raw = sections[0] if len(sections[0]) == header.sections[0][0] else zstandard.decompress(sections[0])
    names = ("coding", "parameter", "count", "length")
    row = dict(zip(names, struct.unpack_from("<BBII", raw), strict=True))
    row.update(facts)
    return with_section(0, struct.pack("<BBII", *(row[name] for name in names)) + raw[10:])


def with_value(bits: int, section: int) -> bytes:
    """A float32 by its bits, in the values or the tail: four planes of bytes."""
    header, sections = parts_of(WHOLE)
    raw_length = header.sections[section][0]
    raw = sections[section]
    planes = bytearray(raw if len(raw) == raw_length else zstandard.decompress(raw, raw_length))
    count = raw_length // 4
    for plane, byte in enumerate(struct.pack("<I", bits)):
        planes[plane * count] = byte
    return with_section(section, bytes(planes), body=WHOLE)


def magic(at: int, byte: int) -> bytes:
    body = bytearray(GOOD)
    body[at] = byte
    return bytes(body)


def bomb(declares: bool) -> bytes:
    frame = zstandard.ZstdCompressor(19, write_content_size=declares).compress(bytes(1 << 26))
    return with_section(2, frame, body=WHOLE)


VARIANTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty body"),
    "one byte": (lambda: b"S", "truncated"),
    "noise": (lambda: np.random.default_rng(0).bytes(3000), "begins with something else"),
    "another magic": (lambda: magic(0, 0x58), "begins with something else"),
    "a version to come": (lambda: magic(3, 9), "version 9"),
    "a header beyond its limit": (lambda: GOOD[:4] + b"\xff\xff" + GOOD[6:], "header of 65535 bytes"),
    "a header cut short": (lambda: GOOD[:30], "header"),
    "a header of zeros": (lambda: GOOD[:6] + bytes(len(GOOD) - 6), "header"),
    "a field too many": (
        lambda: header_of.write(parts_of(GOOD)[0]).replace(b"\x87", b"\x88", 1),
        "header",
    ),
    "negative length": (lambda: with_facts(nnz=-1), "header"),
    "an unknown value format": (lambda: with_facts(values="f99"), "header"),
    "an unknown relation": (lambda: with_facts(relation="cousin"), "header"),
    "a mask of 31 bytes": (lambda: with_facts(mask=bytes(31)), "header"),
    "another size": (lambda: with_facts(size=SIZE + 1), "another model"),
    "another prunable prefix": (lambda: with_facts(num_prunable=PRUNABLE - 1), "another model"),
    "a smaller model": (
        lambda: codec.encode(SparseVector(Mask.full(7), np.ones(7, np.float32)), 7, "f32"),
        "another model",
    ),
    "more positions than there are": (lambda: with_facts(nnz=PRUNABLE + 1), "impossible"),
    "fewer values than said": (lambda: with_facts(nnz=99), "does not follow"),
    "more values than said": (lambda: with_facts(nnz=101), "does not follow"),
    "values at another width": (lambda: with_facts(values="f16"), "does not follow"),
    "a tail at another width": (lambda: with_facts(side="f16"), "does not follow"),
    "scales that are not there": (lambda: with_facts(values="int8"), "does not follow"),
    "no relation, and a mask": (lambda: with_facts(mask=bytes(32)), "contradict"),
    "a relation without its mask": (lambda: with_facts(relation="subset"), "contradict"),
    "a byte missing": (lambda: GOOD[:-1], "more or fewer"),
    "a byte too many": (lambda: GOOD + b"\0", "more or fewer"),
    "longer by compression": (lambda: with_section(3, bytes(33)), "longer by compression"),
    "no zstd frame": (lambda: with_section(2, b"\1" * 50), "zstd"),
    "a frame cut short": (lambda: with_section(2, zstandard.compress(bytes(400))[:-3]), "zstd"),
    "a frame of another length": (lambda: with_section(2, zstandard.compress(bytes(399))), "zstd"),
    "a frame and something behind": (lambda: with_section(2, zstandard.compress(bytes(400)) + b"\0"), "zstd"),
    "a bomb that says so": (lambda: bomb(declares=True), "zstd"),
    "a bomb that does not": (lambda: bomb(declares=False), "zstd"),
    "positions beyond the end": (lambda: with_positions([3, 5000], 10_000), "beyond"),
    "fewer positions than counted": (lambda: with_positions([1, 2, 3, 900], count=50), ""),
    "an unknown coding": (lambda: row_with(coding=77), "coding"),
    "a parameter without meaning": (lambda: row_with(parameter=250), ""),
    "another count in the table": (lambda: row_with(count=99), ""),
    "a stream beyond its section": (lambda: row_with(length=10_000), ""),
    "NaN among the values": (lambda: with_value(0x7FC00000, 2), "finite"),
    "infinity among the values": (lambda: with_value(0x7F800000, 2), "finite"),
    "NaN in the tail": (lambda: with_value(0x7FC00000, 3), "finite"),
    "beyond the exact sum": (
        lambda: codec.encode(SparseVector(FULL.mask, FULL.values * np.float32(1e30)), PRUNABLE, "f32"),
        "diverged",
    ),
    "larger than any body": (lambda: WHOLE + bytes(10_000), "is announced"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_refused_by_the_decoder_or_the_sum(name):
    """One by one, so that a failure names it; and none of them is a good body by mistake."""
    body = VARIANTS[name][0]()
    assert body not in (GOOD, WHOLE)


@pytest.mark.slow
def test_forty_malformed_updates_are_rejected_one_by_one(fault, tmp_path):
    """A device sends a different wrong body in each round, and three others send good ones."""
    row, names = fault(14), list(VARIANTS)
    assert len(names) >= 40

    def hostile(task: Task) -> bytes:
        return VARIANTS[names[task.round_number - 1]][0]()

    with Fleet(tmp_path / "run", size=SIZE, rounds=len(names), peers=3) as fleet:
        liar = fleet.peer("liar", hostile)
        fleet.peers.append(liar)
        fleet.experiment.cohort.clients = 4
        final = fleet.run()
        row.lost, row.double = fleet.tally()[1:]
    assert np.isfinite(final.weights).all()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    rejected = {event["round"]: event for event in events if event["event"] == "rejected"}
    for number, name in enumerate(names, 1):
        assert rejected[number]["client"] == "liar", name
        assert VARIANTS[name][1] in rejected[number]["reason"], f"{name}: {rejected[number]['reason']}"
        row.trials += 1
    assert {receipt.verdict for receipt in liar.verdicts} == {"rejected"}
    assert fleet.tally() == (3 * len(names), 0, 0)
    kinds = {event["reason"] for event in rejected.values()}
    assert len(kinds) >= 25  # As many different texts: whoever reads one knows what is wrong.
