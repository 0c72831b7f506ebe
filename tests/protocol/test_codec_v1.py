"""Bodies of version 1 decode for ever, and are harmless whatever bytes arrive; varints, bitmaps and zstd."""

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from protocol import sections
from protocol.codec import decode, describe
from protocol.errors import LimitExceeded, MalformedMessage
from protocol.sparse import Mask, SparseVector

GOLDEN = Path(__file__).parent.parent / "golden"


def body(header: dict, *sections: bytes) -> bytes:
    """Build a body by hand, from its documented form and without the code under test."""
    packed = msgspec.msgpack.encode(header)
    return b"SFV\x01" + len(packed).to_bytes(2, "little") + packed + b"".join(sections)


def header(**changes: object) -> dict:
    """A header of 4 values, 2 of them prunable and stored; f32."""
    facts = {"size": 4, "num_prunable": 2, "nnz": 2, "values": "f32", "coding": "full"}
    lengths = {"indices_bytes": [0, 0], "values_bytes": [8, 8], "tail_bytes": [8, 8]}
    return {**facts, **lengths, **changes}


def assert_same(a: SparseVector, b: SparseVector) -> None:
    assert a.mask.same(b.mask)
    assert a.values.tobytes() == b.values.tobytes()  # Bits, so that -0.0 counts.


@pytest.mark.parametrize(
    "gap", [0, 1, 127, 128, 129, 16383, 16384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 3]
)
def test_gaps_at_the_edges_of_every_varint_length_survive(gap):
    indices = np.array([gap, gap + 1], np.int32)
    coded = sections.encode_gaps(indices)
    assert np.array_equal(sections.decode_gaps(coded, 2, 2**31 - 1), indices)


# What a peer must not do


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 5},
        {"num_prunable": 3},
        {"nnz": 1},
        {"nnz": 3},
        {"nnz": -1},
        {"nnz": 2**64 - 1},
        {"values": "f64"},
        {"coding": "raw"},
        {"coding": "known"},
        {"coding": "bitmap"},
        {"coding": "delta"},
        {"mask": bytes(32)},
        {"mask": bytes(31), "coding": "known"},
        {"indices_bytes": [1, 0]},
        {"values_bytes": [8, 9], "tail_bytes": [8, 7]},
        {"values_bytes": [2**40, 8]},
        {"tail_bytes": [7, 8]},
        {"tail_bytes": [8]},
        {"tail_bytes": [8, 8.0]},
        {"more": 1},
    ],
)
def test_a_header_that_contradicts_the_model_or_itself_is_rejected(changes):
    sections = np.arange(4, dtype="<f4").tobytes()
    decode(body(header(), sections), 4, 2, {})
    with pytest.raises(MalformedMessage):
        decode(body(header(**changes), sections), 4, 2, {})


def test_more_bytes_than_the_caller_allows_are_not_read():
    data = body(header(), bytes(16))
    with pytest.raises(LimitExceeded, match=str(len(data))):
        decode(data, 4, 2, {}, max_bytes=len(data) - 1)


def test_a_long_header_is_not_read():
    data = b"SFV\x01" + (257).to_bytes(2, "little") + bytes(300)
    with pytest.raises(LimitExceeded, match="257"):
        decode(data, 4, 2, {})


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000])
@pytest.mark.parametrize("place", [0, 3])
def test_infinity_and_nan_on_the_wire_are_rejected(bits, place):
    values = np.zeros(4, "<u4")
    values[place] = bits
    # By hand: each half of the values lies in four byte planes.
    planes = [half.view(np.uint8).reshape(2, 4).T.tobytes() for half in (values[:2], values[2:])]
    with pytest.raises(MalformedMessage, match="not finite"):
        decode(body(header(), *planes), 4, 2, {})


@pytest.mark.parametrize("bitmap", [0b0000_0001, 0b0000_0111, 0b0001_0001])
def test_a_bitmap_with_other_positions_than_declared_is_rejected(bitmap):
    facts = header(size=4, num_prunable=4, coding="bitmap", indices_bytes=[1, 1], tail_bytes=[0, 0])
    decode(body(facts, b"\x05", bytes(8)), 4, 4, {})
    with pytest.raises(MalformedMessage, match="bitmap"):
        decode(body(facts, bytes([bitmap]), bytes(8)), 4, 4, {})


@pytest.mark.parametrize(
    "gaps",
    [
        b"\x03\x00",  # 3, 4
        b"\x01\x02",  # 1, 4
        b"\x80\x00\x00",  # Zero in two bytes.
        b"\x00\x00\x00",  # Three varints.
        b"\x80\x80\x01",  # The second varint has no second byte.
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # Neither ends.
        b"\xff\x00\xff\xff\xff\x7f",  # 2^35 - 1
    ],
)
def test_gaps_that_leave_the_model_or_do_not_end_are_rejected(gaps):
    length = [len(gaps), len(gaps)]
    facts = header(size=4, num_prunable=4, coding="delta", indices_bytes=length, tail_bytes=[0, 0])
    with pytest.raises(MalformedMessage):
        decode(body(facts, gaps, bytes(8)), 4, 4, {})


def test_gaps_are_checked_one_by_one_and_in_sum():
    # A gap of 2^35 - 1 would come out small in 32 bits.
    with pytest.raises(MalformedMessage, match="does not fit in 32 bits"):
        sections.decode_gaps(b"\xff\xff\xff\xff\x7f", 1, 4)
    with pytest.raises(MalformedMessage, match="the gaps lead beyond"):
        sections.decode_gaps(b"\x01\x02", 2, 4)


def test_lengths_are_checked_before_sections_are_unpacked():
    short = header(nnz=1, values_bytes=[4, 4])
    with pytest.raises(MalformedMessage, match="as full with 1 of 2"):
        decode(body(short, bytes(12)), 4, 2, {})
    for changes in ({"values_bytes": [4, 4]}, {"tail_bytes": [4, 4]}):
        with pytest.raises(MalformedMessage, match="does not follow"):
            decode(body(header(**changes), bytes(12)), 4, 2, {})
    frame = zstandard.ZstdCompressor().compress(bytes(8))  # 17 bytes instead of 8.
    with pytest.raises(MalformedMessage, match="longer by compression"):
        decode(body(header(values_bytes=[8, len(frame)]), frame, bytes(8)), 4, 2, {})


def test_a_mask_with_another_tail_than_the_model_is_rejected():
    mask = Mask(np.array([0, 1, 3], np.int32), 4)
    digest = bytes.fromhex(mask.digest)
    data = body(header(coding="known", mask=digest), bytes(16))
    with pytest.raises(MalformedMessage, match="prunable positions"):
        decode(data, 4, 2, {mask.digest: mask})


# Bombs


def bomb_frames() -> dict[str, bytes]:
    """Zstd frames that expand to 256 MiB, and say so, say nothing, or say something else."""
    zeros = bytes(256 << 20)
    declared = zstandard.ZstdCompressor(level=1).compress(zeros)
    undeclared = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(zeros)
    # A frame's content size follows magic and descriptor: 4 bytes at offset 6 behind a window byte.
    lying = bytearray(declared)
    assert lying[6:10] == (256 << 20).to_bytes(4, "little")
    lying[6:10] = (200_000).to_bytes(4, "little")
    return {"declared": declared, "undeclared": undeclared, "lying": bytes(lying)}


FRAMES = bomb_frames()


@pytest.mark.parametrize("kind", FRAMES)
def test_a_zstd_bomb_is_rejected_without_being_unpacked(kind):
    frame = FRAMES[kind]
    lengths = {"values_bytes": [200_000, len(frame)], "tail_bytes": [0, 0]}
    data = body(header(size=50_000, num_prunable=50_000, nnz=50_000, **lengths), frame)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(data, 50_000, 50_000, {})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_a_frame_with_a_large_window_is_rejected():
    # A frame of 9 MiB in a single segment: its window is its size.
    raw = bytes(9 << 20)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=24, write_content_size=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
    assert zstandard.get_frame_parameters(frame).window_size > 8 << 20
    with pytest.raises(MalformedMessage, match="window"):
        sections.decompress(frame, len(raw))


def test_bytes_behind_a_frame_are_rejected():
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    with pytest.raises(MalformedMessage, match="not a zstd frame"):
        sections.decompress(frame + b"more", 1000)


@pytest.mark.parametrize(
    "packed", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 250, b"\xc6\xff\xff\xff\xff"]
)
def test_a_msgpack_bomb_is_rejected(packed):
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(b"SFV\x01" + len(packed).to_bytes(2, "little") + packed, 4, 2, {})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


# Golden bytes: written once, and they must decode for ever


def golden_vector(nnz: int) -> SparseVector:
    """Every index and value by a rule that needs no random generator: 600 prunable, 12 dense."""
    indices = np.concatenate([np.arange(nnz) * 600 // nnz, np.arange(600, 612)]).astype(np.int32)
    return SparseVector(Mask(indices, 612), ((indices % 37) - 18).astype(np.float32) / 16)


@pytest.mark.parametrize(
    ("name", "nnz", "values"),
    [
        ("full", 600, "f32"),
        ("known", 60, "f16"),
        ("bitmap", 200, "f16"),
        ("delta", 7, "f32"),
        ("delta_two_planes", 3, "f32"),  # Gaps of 199, which have two bytes.
    ],
)
def test_bodies_of_version_1_decode_for_ever(name, nnz, values):
    data = (GOLDEN / f"codec_v1_{name}.bin").read_bytes()
    vector = golden_vector(nnz)
    facts = describe(data)
    assert (facts["coding"], facts["nnz"], facts["values"]) == (name.partition("_")[0], nnz, values)
    assert facts["bound_bytes"] > 0  # What the coordinator reports of it.
    assert_same(decode(data, 612, 600, {vector.mask.digest: vector.mask}), vector)
