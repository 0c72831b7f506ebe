"""Bodies of version 2: exact, near the entropy bound, and harmless whatever bytes arrive."""

import tracemalloc
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import ValueFormat, as_received, decode, describe, encode, max_body_bytes
from protocol.errors import LimitExceeded, MalformedMessage, ProtocolError, UnknownMask
from protocol.indices import BITMAP, DELTA, INVERTED, RICE, bound_bits
from protocol.sparse import Mask, SparseVector

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS = get_args(ValueFormat)
LITTLE_BYTES = 8 << 20  # Of 2,000,000 values: 40 MB for a ResNet-18, which has five and a half times as many.


def a_mask(rng: np.random.Generator, num_prunable: int, tail: int, nnz: int) -> Mask:
    prunable = np.sort(rng.choice(num_prunable, nnz, replace=False))
    side = np.arange(num_prunable, num_prunable + tail)
    return Mask(np.concatenate([prunable, side]).astype(np.int32), num_prunable + tail)


def a_vector(seed: int, num_prunable: int, tail: int, density: float) -> SparseVector:
    rng = np.random.default_rng(seed)
    mask = a_mask(rng, num_prunable, tail, round(density * num_prunable))
    return SparseVector(mask, rng.normal(0, 0.02, mask.nnz).astype(np.float32))


def neighbour(mask: Mask, num_prunable: int, removed: int, added: int, seed: int = 0) -> Mask:
    """The mask with some prunable positions removed and as many as said added."""
    rng = np.random.default_rng(seed)
    support = mask.below(num_prunable).indices
    kept = np.sort(rng.permutation(support.copy())[: support.size - removed])
    free = np.setdiff1d(np.arange(num_prunable), support)
    new = rng.choice(free, added, replace=False)
    prunable = np.sort(np.concatenate([kept, new]))
    return Mask(np.concatenate([prunable, np.arange(num_prunable, mask.size)]).astype(np.int32), mask.size)


def assert_same(a: SparseVector, b: SparseVector) -> None:
    assert a.mask.same(b.mask)
    assert a.values.tobytes() == b.values.tobytes()  # Bits, so that -0.0 counts.


# Round trips


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    tail=st.integers(0, 20),
    density=st.floats(0, 1),
    values=st.sampled_from(FORMATS),
    side=st.sampled_from(["f32", "f16"]),
    relation=st.sampled_from(["none", "known", "subset", "change"]),
)
def test_a_body_gives_what_as_received_says_and_the_same_body_again(
    seed, sizes, tail, density, values, side, relation
):
    num_prunable, ends = sum(sizes), [int(n) for n in np.cumsum(sizes)]
    vector = a_vector(seed, num_prunable, tail, density)
    masks, known, base = {}, (), None
    if relation == "known":
        masks, known = {vector.mask.digest: vector.mask}, (vector.mask.digest,)
    elif relation != "none":
        nnz = vector.mask.nnz - tail
        removed = min(nnz, 3) if relation == "change" else 0
        base = neighbour(vector.mask, num_prunable, removed, min(5, num_prunable - nnz), seed)
        masks = {base.digest: base}
    options = {"ends": ends, "side": side, "base": base}
    data = encode(vector, num_prunable, values, known, **options)
    decoded = decode(memoryview(data), num_prunable + tail, num_prunable, masks, ends=ends)
    assert_same(decoded, as_received(vector, num_prunable, values, ends=ends, side=side))
    assert decoded.mask.same(vector.mask)
    again = encode(decoded, num_prunable, values, known, **options)
    assert_same(decode(again, num_prunable + tail, num_prunable, masks, ends=ends), decoded)
    assert len(data) <= max_body_bytes(num_prunable + tail)


@pytest.mark.parametrize("values", ["f32", "f16", "bf16"])
def test_negative_zero_and_subnormals_survive(values):
    exact = np.array([-0.0, 2.0**-24, -32768.0, 1e-45], np.float32)  # The last one in the tail.
    vector = SparseVector(Mask.full(4), exact)
    assert_same(decode(encode(vector, 3, values), 4, 3, {}), vector)


def test_floating_point_rounds_to_nearest_even():
    # Float16 has 11 bits: 2048 and 2050 are neighbours, and 2049 lies between them. bfloat16 has 8.
    halves = SparseVector(Mask.full(2), np.array([2049.0, 2051.0], np.float32))
    assert decode(encode(halves, 2, "f16"), 2, 2, {}).values.tolist() == [2048.0, 2052.0]
    brains = SparseVector(Mask.full(2), np.array([257.0, 259.0], np.float32))
    assert decode(encode(brains, 2, "bf16"), 2, 2, {}).values.tolist() == [256.0, 260.0]


# Relations and codings


def test_a_known_mask_costs_no_index_bytes():
    vector = a_vector(2, 1000, 10, 0.1)
    facts = describe(encode(vector, 1000, "f32", known=[vector.mask.digest]))
    assert (facts["coding"], facts["indices_bytes"], facts["mask"]) == ("known", 0, vector.mask.digest)


@pytest.mark.parametrize(
    ("removed", "added", "relation"), [(0, 100, "subset"), (30, 30, "change"), (999, 0, "change")]
)
def test_the_cheapest_relation_is_chosen(removed, added, relation):
    vector = a_vector(2, 20_000, 10, 0.05)
    base = neighbour(vector.mask, 20_000, removed, added)
    data = encode(vector, 20_000, "f16", base=base)
    assert describe(data)["coding"] == relation
    assert_same(decode(data, 20_010, 20_000, {base.digest: base}), as_received(vector, 20_000, "f16"))


def test_a_receiver_without_the_mask_says_so():
    vector = a_vector(2, 1000, 10, 0.1)
    base = neighbour(vector.mask, 1000, 3, 3)
    for options in ({"known": [vector.mask.digest]}, {"base": base}):
        with pytest.raises(UnknownMask, match="not held here"):
            decode(encode(vector, 1000, "f32", **options), 1010, 1000, {})


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001])
def test_random_positions_come_near_the_entropy_bound(density):
    facts = describe(encode(a_vector(3, 1_000_000, 0, density), 1_000_000, "f16"))
    bound = bound_bits(1_000_000, round(density * 1_000_000)) / 8
    assert facts["index_bound_bytes"] == bound
    most = 1.001 if density == 0.5 else 1.03
    assert bound <= facts["indices_bytes"] <= most * bound


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3])
def test_changes_come_near_their_bound(share):
    vector = a_vector(4, 1_000_000, 0, 0.05)
    swapped = round(share * vector.mask.nnz)
    base = neighbour(vector.mask, 1_000_000, swapped, swapped)
    bound = (bound_bits(50_000, swapped) + bound_bits(950_000, swapped)) / 8
    facts = describe(encode(vector, 1_000_000, "f16", base=base))
    assert (facts["coding"], facts["indices_bytes"] <= 1.05 * bound) == ("change", True)


@pytest.mark.parametrize("kept", [0.98, 0.9, 0.5])
def test_subsets_come_near_their_bound(kept):
    base = a_mask(np.random.default_rng(5), 1_000_000, 0, 50_000)
    mask = neighbour(base, 1_000_000, round((1 - kept) * 50_000), 0)
    facts = describe(encode(SparseVector(mask, np.ones(mask.nnz, np.float32)), 1_000_000, "f16", base=base))
    bound = bound_bits(50_000, mask.nnz) / 8
    assert (facts["coding"], facts["indices_bytes"] <= 1.05 * bound) == ("subset", True)


def test_layers_of_different_densities_cost_less_than_one_part():
    rng = np.random.default_rng(6)
    parts = [a_mask(rng, 50_000, 0, n).indices + 50_000 * i for i, n in enumerate((20_000, 2_000, 100))]
    mask = Mask(np.concatenate(parts), 150_000)
    vector = SparseVector(mask, np.ones(mask.nnz, np.float32))
    ends = [50_000, 100_000, 150_000]
    together, apart = (describe(encode(vector, 150_000, "f16", ends=e)) for e in ((), ends))
    assert apart["indices_bytes"] < 0.85 * together["indices_bytes"]


def test_structured_positions_cost_next_to_nothing():
    kept = np.concatenate([np.arange(i, i + 576) for i in range(0, 576 * 64, 576 * 4)]).astype(np.int32)
    vector = SparseVector(Mask(kept, 576 * 64), np.ones(kept.size, np.float32))
    facts = describe(encode(vector, 576 * 64, "f16"))
    assert facts["indices_bytes"] < 0.05 * facts["index_bound_bytes"]


# Quantised values


@pytest.mark.parametrize("values", ["int8", "int4", "log8", "log4"])
def test_rounding_is_unbiased_keeps_zeros_and_the_largest(values):
    exact = np.tile(np.array([0.0, 1.0, -0.37, 0.011, 0.6], np.float32), 20_000)
    found = as_received(SparseVector(Mask.full(exact.size), exact), exact.size, values).values
    assert not found[exact == 0].any()
    assert np.all(found[exact == 1] == 1.0)
    for value in (-0.37, 0.011, 0.6):
        rounded = found[exact == np.float32(value)]
        assert rounded.mean() == pytest.approx(value, abs=4 * rounded.std() / np.sqrt(rounded.size) + 1e-6)
        assert len(np.unique(rounded)) <= 2


@pytest.mark.parametrize(("values", "levels"), [("int8", 255), ("int4", 15), ("log8", 255), ("log4", 15)])
def test_a_grid_has_its_levels_and_each_layer_its_own(values, levels):
    rng = np.random.default_rng(1)
    exact = np.concatenate([rng.uniform(-1, 1, 100_000), 1e-4 * rng.uniform(-1, 1, 100_000)])
    vector = SparseVector(Mask.full(200_000), exact.astype(np.float32))
    found = as_received(vector, 200_000, values, ends=[100_000, 200_000]).values
    assert 0.7 * levels <= len(np.unique(found[:100_000])) <= levels
    assert len(np.unique(found[100_000:])) >= 0.7 * levels


def test_four_bits_on_a_known_mask_take_an_eighth_of_float32():
    vector = a_vector(2, 100_000, 0, 0.1)
    sizes = {v: len(encode(vector, 100_000, v, [vector.mask.digest])) for v in ("f32", "int4")}
    assert describe(encode(vector, 100_000, "int4", [vector.mask.digest]))["values_bytes"] <= 5_000
    assert sizes["f32"] > 7 * sizes["int4"]


# What a caller must not do


def test_what_a_caller_must_not_do():
    with pytest.raises(ValueError, match="only 1 of its 2"):
        encode(SparseVector(Mask(np.array([0, 3], np.int32), 4), np.ones(2, np.float32)), 2, "f32")
    vector = SparseVector(Mask.full(4), np.array([1.0, 66_000.0, -70_000.0, 0.0], np.float32))
    with pytest.raises(ValueError, match="-70000"):
        encode(vector, 4, "f16")
    with pytest.raises(ValueError, match="parts end"):
        encode(vector, 4, "f32", ends=[2, 3])
    with pytest.raises(ValueError, match="unknown value format"):
        encode(vector, 4, "f64")


@pytest.mark.parametrize("values", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_a_value_that_is_not_finite_is_not_encoded(value, place, values):
    exact = np.ones(4, np.float32)
    exact[place] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(SparseVector(Mask.full(4), exact), 2, values)


# What a peer must not do


def small_bodies() -> list[tuple[bytes, dict[str, Mask]]]:
    """One body of every relation and format; 40 values, 32 prunable in two parts."""
    bodies = []
    for nnz, values, relation in (
        (32, "f32", "none"),
        (16, "f16", "none"),
        (3, "int8", "none"),
        (16, "bf16", "known"),
        (12, "log4", "subset"),
        (16, "int4", "change"),
        (0, "log8", "none"),
    ):
        vector = a_vector(nnz, 32, 8, nnz / 32)
        base = vector.mask if relation == "known" else None
        if relation in ("subset", "change"):
            base = neighbour(vector.mask, 32, int(relation == "change"), 2)
        masks = {} if base is None else {base.digest: base}
        known = list(masks) if relation == "known" else ()
        data = encode(vector, 32, values, known, base=base, ends=[12, 32])
        assert describe(data)["coding"] == relation
        bodies.append((data, masks))
    return bodies


def test_a_body_cut_at_any_byte_is_rejected():
    for data, masks in small_bodies():
        for end in range(len(data)):
            with pytest.raises(ProtocolError):
                decode(data[:end], 40, 32, masks, ends=[12, 32])


def test_a_byte_after_the_body_is_rejected():
    for data, masks in small_bodies():
        with pytest.raises(MalformedMessage, match="more or fewer"):
            decode(data + b"\0", 40, 32, masks, ends=[12, 32])


def test_a_corrupted_byte_is_rejected_or_yields_a_valid_vector():
    num_valid = num_rejected = 0
    for data, masks in small_bodies():
        for place in range(len(data)):
            for flip in (0x01, 0x10, 0x80, 0xFF):
                changed = bytearray(data)
                changed[place] ^= flip
                try:
                    decoded = decode(bytes(changed), 40, 32, masks, ends=[12, 32])
                except ProtocolError:
                    num_rejected += 1
                else:
                    num_valid += 1
                    assert decoded.mask.size == 40
                    assert np.isfinite(decoded.values).all()
    assert num_valid > 100  # A value's mantissa: only the blob's digest can tell.
    assert num_rejected > 1000


def body(*sections: bytes, **changes: object) -> bytes:
    """A body by hand, from its documented form: 4 values, 2 of them prunable and stored; f32."""
    part = b"\0\0" + (2).to_bytes(4, "little") + bytes(4)
    facts = {"size": 4, "num_prunable": 2, "nnz": 2, "values": "f32", "side": "f32", "relation": "none"}
    facts["sections"] = [[10, 10], [0, 0], [8, 8], [8, 8]]
    packed = msgspec.msgpack.encode({**facts, **changes})
    rest = b"".join(sections) if sections else part + bytes(16)
    return b"SFV\x02" + len(packed).to_bytes(2, "little") + packed + rest


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
        {"values": "int8"},
        {"side": "f16"},
        {"relation": "raw"},
        {"relation": "known"},
        {"mask": bytes(32)},
        {"mask": bytes(31), "relation": "known"},
        {"sections": [[10, 10], [1, 0], [8, 8], [8, 8]]},
        {"sections": [[10, 10], [0, 0], [8, 9], [8, 7]]},
        {"sections": [[10, 10], [0, 0], [2**40, 8], [8, 8]]},
        {"sections": [[10, 10], [0, 0], [8, 8]]},
        {"sections": [[10, 10], [0, 0], [8, 8], [8, 8.0]]},
        {"sections": [[20, 10], [0, 0], [8, 8], [8, 8]]},
        {"more": 1},
    ],
)
def test_a_header_that_contradicts_the_model_or_itself_is_rejected(changes):
    decode(body(), 4, 2, {})
    with pytest.raises(MalformedMessage):
        decode(body(**changes), 4, 2, {})


@pytest.mark.parametrize(
    ("coding", "parameter", "count", "data"),
    [
        (0, 0, 1, b""),  # One of two positions cannot be coded as nothing.
        (0, 1, 2, b""),  # No parameter there.
        (1, 0, 2, b"\x01"),  # A bitmap of one position.
        (1, 0, 2, b"\x07"),  # A bit to spare.
        (2, 0, 2, b"\x01"),  # Rice: one quotient.
        (2, 0, 2, b"\x05"),  # Beyond the two positions.
        (2, 1, 2, b"\x03\x04"),  # Bits to spare in the remainders.
        (2, 31, 2, b"\x03" + bytes(7)),  # Too short for the remainders.
        (2, 32, 2, b"\x03" + bytes(8)),  # No such parameter.
        (3, 0, 2, b"\x00\x01"),  # Varints beyond.
        (4, 0, 2, b"\x03"),  # No such coding.
        (1, 0, 3, b"\x03"),  # More than there are.
    ],
)
def test_a_part_that_no_encoder_writes_is_rejected(coding, parameter, count, data):
    part = bytes([coding, parameter]) + count.to_bytes(4, "little") + len(data).to_bytes(4, "little")
    sections = [[10, 10], [len(data), len(data)], [8, 8], [8, 8]]
    with pytest.raises(MalformedMessage):
        decode(body(part, data, bytes(16), sections=sections), 4, 2, {})


def test_levels_that_no_encoder_writes_are_rejected():
    def quantised(values: str, data: bytes, largest: float) -> bytes:
        part = b"\0\0" + (2).to_bytes(4, "little") + bytes(4) + np.float32(largest).tobytes()
        sections = [[14, 14], [0, 0], [len(data)] * 2, [8, 8]]
        return body(part, data, bytes(8), values=values, sections=sections)

    decode(quantised("int8", b"\x7f\x81", 1.0), 4, 2, {})
    decode(quantised("int4", b"\x97", 1.0), 4, 2, {})
    for values, data, largest in (
        ("int8", b"\x80\x01", 1.0),
        ("log8", b"\x80\x01", 1.0),
        ("int4", b"\x08", 1.0),
        ("int8", b"\x01\x01", 0.0),
        ("int8", b"\x01\x01", -1.0),
        ("int8", b"\x01\x01", float("nan")),
        ("log4", b"\x11", float("inf")),
    ):
        with pytest.raises(MalformedMessage):
            decode(quantised(values, data, largest), 4, 2, {})


def test_versions_limits_and_long_headers():
    data = bytearray(body())
    data[3] = 3
    with pytest.raises(MalformedMessage, match=r"version 3.*versions 1 and 2"):
        decode(bytes(data), 4, 2, {})
    with pytest.raises(LimitExceeded, match=str(len(data))):
        decode(body(), 4, 2, {}, max_bytes=len(data) - 1)
    with pytest.raises(LimitExceeded, match="257"):
        decode(b"SFV\x02" + (257).to_bytes(2, "little") + bytes(300), 4, 2, {})


@pytest.mark.parametrize("section", range(4))
def test_a_bomb_in_any_section_is_rejected_without_being_unpacked(section):
    frame = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    sections = [[10, 10], [0, 0], [200_000, 200_000], [0, 0]]
    sections[section] = [max(sections[section][0], len(frame)), len(frame)]
    facts = {"size": 50_000, "num_prunable": 50_000, "nnz": 50_000, "sections": sections}
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(
                body(
                    b"".join(bytes(n) if i != section else frame for i, (_, n) in enumerate(sections)),
                    **facts,
                ),
                50_000,
                50_000,
                {},
            )
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 << 20


def test_encoding_and_decoding_take_little_memory():
    vector = a_vector(1, 2_000_000, 0, 0.05)
    tracemalloc.start()
    try:
        data = encode(vector, 2_000_000, "f16")
        decode(data, 2_000_000, 2_000_000, {})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < LITTLE_BYTES


def test_coding_a_changed_mask_takes_little_memory():
    base, vector = a_vector(1, 2_000_000, 0, 0.05).mask, a_vector(2, 2_000_000, 0, 0.05)
    vector = vector.restrict(neighbour(base, 2_000_000, 10_000, 10_000))
    tracemalloc.start()
    try:
        data = encode(vector, 2_000_000, "f16", base=base)
        decode(data, 2_000_000, 2_000_000, {base.digest: base})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert describe(data)["coding"] == "change"
    assert peak_bytes < LITTLE_BYTES


def test_a_dense_model_is_never_there_more_often_than_it_must():
    size = 1_000_000
    vector = SparseVector(Mask.full(size), np.random.default_rng(0).standard_normal(size).astype(np.float32))
    tracemalloc.start()
    try:
        data = encode(vector, size, "f32")
        encoded_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        decode(data, size, size, {})
        decoded_bytes = tracemalloc.get_traced_memory()[1] - len(data)
    finally:
        tracemalloc.stop()
    assert encoded_bytes < 8.1 * size + len(data)  # The values' planes, room for their section, and the body.
    assert decoded_bytes < 13.5 * size  # Positions, values and where they come from, whether they are finite.


@pytest.mark.parametrize(
    ("coding", "parameter", "count", "index_bytes"),
    [
        (RICE, 0, 1_000_000, bytes(1_000_000)),  # Quotients that are not there.
        (RICE, 0, 900_000, b"\xff" * 112_500 + bytes(137_000)),
        (RICE, 20, 90_000, b"\xff" * 250_000),
        (RICE, 21, 900_000, b"\xff" * 250_000),
        (DELTA, 0, 1_000_000, b"\xff" * 1_000_000),
        (DELTA, 0, 1_000_000, b"\x7f" * 1_000_000),
        (BITMAP, 0, 1_000_000, b"\xff" * 250_000),
        (INVERTED | RICE, 0, 1_000_001, b"\x01" * 250_000),
    ],
)
def test_hostile_positions_are_refused_in_little_memory(coding, parameter, count, index_bytes):
    size = 2_000_000
    table = np.array([(coding, parameter, count, len(index_bytes))], "u1,u1,<u4,<u4").tobytes()
    sections = [table, index_bytes, bytes(2 * count), b""]
    data = body(
        b"".join(sections),
        size=size,
        num_prunable=size,
        nnz=count,
        values="f16",
        sections=[[len(section)] * 2 for section in sections],
    )
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(data, size, size, {})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 << 20


# Golden bytes: written once, and they must decode for ever


def golden_vector(nnz: int) -> SparseVector:
    """Every index and value by a rule that needs no random generator: 600 prunable, 12 dense."""
    indices = np.concatenate([np.arange(nnz) * 600 // nnz, np.arange(600, 612)]).astype(np.int32)
    return SparseVector(Mask(indices, 612), ((indices % 15) - 7).astype(np.float32) / 8)


def golden_base(nnz: int) -> Mask:
    indices = np.concatenate([np.arange(nnz) * 599 // nnz, np.arange(600, 612)])
    return Mask(indices.astype(np.int32), 612)


GOLDEN_BODIES = {
    "full": (600, "f32", None),
    "known": (60, "f16", golden_vector(60).mask),
    "bitmap": (200, "bf16", None),
    "rice": (30, "int8", None),
    "int4": (300, "int4", golden_vector(300).mask),
    "subset": (100, "log8", golden_vector(200).mask),
    "change": (100, "log4", golden_base(100)),
}
GOLDEN_ENDS = [100, 450, 600]


@pytest.mark.parametrize("name", GOLDEN_BODIES)
def test_bodies_of_version_2_decode_for_ever(name):
    nnz, values, base = GOLDEN_BODIES[name]
    data = (GOLDEN / f"codec_v2_{name}.bin").read_bytes()
    masks = {} if base is None else {base.digest: base}
    found = decode(data, 612, 600, masks, ends=GOLDEN_ENDS)
    assert found.mask.same(golden_vector(nnz).mask)
    if values in ("f32", "f16", "bf16", "int4", "int8"):
        np.testing.assert_allclose(found.values, golden_vector(nnz).values, atol=1 / 127)
    assert np.load(GOLDEN / "codec_v2_values.npz")[name].tobytes() == found.values.tobytes()
