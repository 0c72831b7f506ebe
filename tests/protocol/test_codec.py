"""Bodies: exact, small, and harmless whatever bytes arrive."""

import tracemalloc
from math import lgamma, log
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import sections
from protocol.codec import decode, describe, encode, max_body_bytes
from protocol.errors import LimitExceeded, MalformedMessage, ProtocolError, UnknownMask
from protocol.sparse import Indices, Mask, SparseVector

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS = ("f32", "f16")


def body(header: dict, *sections: bytes) -> bytes:
    """Build a body by hand, from its documented form and without the code under test."""
    packed = msgspec.msgpack.encode(header)
    return b"SFV\x01" + len(packed).to_bytes(2, "little") + packed + b"".join(sections)


def header(**changes: object) -> dict:
    """A header of 4 values, 2 of them prunable and stored; f32."""
    facts = {"size": 4, "num_prunable": 2, "nnz": 2, "values": "f32", "coding": "full"}
    lengths = {"indices_bytes": [0, 0], "values_bytes": [8, 8], "tail_bytes": [8, 8]}
    return {**facts, **lengths, **changes}


def random_indices(rng: np.random.Generator, num_prunable: int, nnz: int) -> Indices:
    return np.sort(rng.choice(num_prunable, nnz, replace=False)).astype(np.int32)


def random_vector(seed: int, num_prunable: int, tail: int, density: float, dtype: str = "f4") -> SparseVector:
    rng = np.random.default_rng(seed)
    prunable = random_indices(rng, num_prunable, round(density * num_prunable))
    size = num_prunable + tail
    mask = Mask(np.concatenate([prunable, np.arange(num_prunable, size, dtype=np.int32)]), size)
    values = rng.normal(0, 0.02, mask.nnz).astype(np.float32)
    values[: prunable.size] = values[: prunable.size].astype(dtype)
    return SparseVector(mask, values)


def assert_same(a: SparseVector, b: SparseVector) -> None:
    assert a.mask.same(b.mask)
    assert a.values.tobytes() == b.values.tobytes()  # Bits, so that -0.0 counts.


# Round trips


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 400),
    st.integers(0, 20),
    st.floats(0, 1),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_a_body_returns_the_same_vector_and_the_vector_the_same_body(
    seed, prunable, tail, density, values, is_known
):
    vector = random_vector(seed, prunable, tail, density, {"f32": "f4", "f16": "f2"}[values])
    masks = {vector.mask.digest: vector.mask} if is_known else {}
    data = encode(vector, prunable, values, known=masks)
    decoded = decode(memoryview(data), prunable + tail, prunable, masks)
    assert_same(decoded, vector)
    assert encode(decoded, prunable, values, known=masks) == data
    assert len(data) <= max_body_bytes(prunable + tail)


@pytest.mark.parametrize(
    "gap", [0, 1, 127, 128, 129, 16383, 16384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 3]
)
def test_gaps_at_the_edges_of_every_varint_length_survive(gap):
    indices = np.array([gap, gap + 1], np.int32)
    coded = sections.encode_gaps(indices)
    assert np.array_equal(sections.decode_gaps(coded, 2, 2**31 - 1), indices)


def test_negative_zero_and_subnormals_survive():
    values = np.array([-0.0, 2.0**-24, -65504.0, 1e-45], np.float32)  # f16 in front, f32 in the tail.
    vector = SparseVector(Mask.full(4), values)
    assert_same(decode(encode(vector, 3, "f16"), 4, 3, {}), vector)


def test_float16_rounds_to_nearest_even():
    # Float16 has 11 bits: 2048 and 2050 are neighbours, and 2049 lies between them.
    vector = SparseVector(Mask.full(2), np.array([2049.0, 2051.0], np.float32))
    assert decode(encode(vector, 2, "f16"), 2, 2, {}).values.tolist() == [2048.0, 2052.0]


# The choice of a coding


@pytest.mark.parametrize(
    ("density", "coding"), [(1.0, "full"), (0.5, "bitmap"), (0.2, "bitmap"), (0.05, "delta"), (0.0, "delta")]
)
def test_the_smallest_coding_is_chosen(density, coding):
    assert describe(encode(random_vector(1, 20_000, 10, density), 20_000, "f32"))["coding"] == coding


def test_a_known_mask_costs_no_index_bytes():
    vector = random_vector(2, 1000, 10, 0.1)
    facts = describe(encode(vector, 1000, "f32", known=[vector.mask.digest]))
    assert (facts["coding"], facts["indices_bytes"], facts["mask"]) == ("known", 0, vector.mask.digest)


def test_a_receiver_without_the_mask_says_so():
    vector = random_vector(2, 1000, 10, 0.1)
    with pytest.raises(UnknownMask, match=vector.mask.digest):
        decode(encode(vector, 1000, "f32", known=[vector.mask.digest]), 1010, 1000, {})


@pytest.mark.parametrize("density", [0.1, 0.05, 0.02, 0.01])
def test_coded_gaps_come_near_the_information_in_a_random_mask(density):
    size, nnz = 200_000, round(200_000 * density)
    # log2 of the number of masks with this many positions, in bytes: no coding can do better.
    bound = (lgamma(size + 1) - lgamma(nnz + 1) - lgamma(size - nnz + 1)) / log(2) / 8
    gaps = sections.encode_gaps(random_indices(np.random.default_rng(3), size, nnz))
    # At density 0.1 a gap carries 4.7 bits and takes a whole byte, so that only zstd brings it near.
    assert len(gaps) <= (1.4 if density < 0.1 else 1.75) * bound
    assert len(sections.compress(gaps)) <= 1.15 * bound


# What a caller must not do


def test_a_vector_without_its_whole_tail_is_not_encoded():
    vector = SparseVector(Mask(np.array([0, 3], np.int32), 4), np.ones(2, np.float32))
    with pytest.raises(ValueError, match="only 1 of its 2"):
        encode(vector, 2, "f32")


def test_float16_overflow_names_the_largest_value():
    vector = SparseVector(Mask.full(4), np.array([1.0, 66_000.0, -70_000.0, 0.0], np.float32))
    with pytest.raises(ValueError, match="-70000"):
        encode(vector, 4, "f16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_a_value_that_is_not_finite_is_not_encoded(value, place):
    values = np.ones(4, np.float32)
    values[place] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(SparseVector(Mask.full(4), values), 2, "f32")


# What a peer must not do


def small_bodies() -> list[tuple[bytes, dict[str, Mask]]]:
    """One body of every coding, each with the masks for decoding it; 40 values, 32 prunable."""
    bodies = []
    for nnz, values, is_known in (
        (32, "f32", False),
        (16, "f16", False),
        (3, "f32", False),
        (16, "f16", True),
    ):
        vector = random_vector(nnz, 32, 8, nnz / 32, "f2")
        masks = {vector.mask.digest: vector.mask} if is_known else {}
        bodies.append((encode(vector, 32, values, known=masks), masks))
    return bodies


def test_the_small_bodies_cover_every_coding():
    assert {describe(data)["coding"] for data, _ in small_bodies()} == {"full", "known", "bitmap", "delta"}


def test_a_body_cut_at_any_byte_is_rejected():
    for data, masks in small_bodies():
        for end in range(len(data)):
            with pytest.raises(ProtocolError):
                decode(data[:end], 40, 32, masks)


def test_a_byte_after_the_body_is_rejected():
    for data, masks in small_bodies():
        with pytest.raises(MalformedMessage, match="more or fewer"):
            decode(data + b"\0", 40, 32, masks)


def test_a_corrupted_byte_is_rejected_or_yields_a_valid_vector():
    # Every other bit pattern of one byte; a compressed body, whose zstd frames are then hit as well.
    vector = random_vector(5, 500, 300, 0.1)
    vector = SparseVector(vector.mask, np.repeat(vector.values[::10], 10)[: vector.mask.nnz])
    compressed = encode(vector, 500, "f32"), {}
    assert describe(compressed[0])["total_bytes"] < 4 * vector.mask.nnz
    num_valid = num_rejected = 0
    for data, masks in [*small_bodies(), compressed]:
        size, num_prunable = (800, 500) if data == compressed[0] else (40, 32)
        for place in range(len(data)):
            for flip in (0x01, 0x80, 0xFF):
                changed = bytearray(data)
                changed[place] ^= flip
                try:
                    decoded = decode(bytes(changed), size, num_prunable, masks)
                except ProtocolError:
                    num_rejected += 1
                else:
                    num_valid += 1
                    assert decoded.mask.size == size
                    assert np.isfinite(decoded.values).all()
    assert num_valid > 100  # A value's mantissa: only the blob's digest can tell.
    assert num_rejected > 100


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


def test_a_body_of_another_version_names_both():
    data = bytearray(body(header(), bytes(16)))
    data[3] = 2
    with pytest.raises(MalformedMessage, match=r"version 2.*version 1"):
        decode(bytes(data), 4, 2, {})


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
    # One by one, lest the sum overflow: 2^28 gaps of 2^35 - 1 would come out small.
    with pytest.raises(MalformedMessage, match="a gap leads beyond"):
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
    assert_same(decode(data, 612, 600, {vector.mask.digest: vector.mask}), vector)
