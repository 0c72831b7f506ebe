from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.layout import DENSE, MAX_SIZE, PRUNABLE, Layout
from protocol.sparse import Mask, SparseVector, count_below, iou, num_kept, top_k


@st.composite
def masks(draw: st.DrawFn, size: int = 40) -> Mask:
    return Mask(np.array(sorted(draw(st.sets(st.integers(0, size - 1)))), np.int32), size)


def stored(mask: Mask) -> set[int]:
    return set(mask.indices.tolist())


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([1, 1], "strictly increasing"),
        ([2, 1], "strictly increasing"),
        ([-1, 2], "out of range"),
        ([2, 5], "out of range"),
        ([[1, 2]], "one-dimensional"),
        ([0.5], "integer"),
    ],
)
def test_a_mask_refuses_what_kernels_rely_on(indices, said):
    with pytest.raises(MalformedMessage, match=said):
        Mask(np.array(indices), 5)


def test_a_mask_cannot_be_changed_afterwards():
    mask = Mask(np.array([0, 3], np.int32), 5)
    with pytest.raises(ValueError, match="read-only"):
        mask.indices[0] = 4


@given(masks(), masks())
def test_set_operations_are_those_of_sets(a, b):
    assert stored(a.intersection(b)) == stored(a) & stored(b)
    assert stored(a.union(b)) == stored(a) | stored(b)
    either = stored(a) | stored(b)
    assert iou(a, b) == (len(stored(a) & stored(b)) / len(either) if either else 1.0)


@given(masks(), masks())
def test_restriction_keeps_common_values_and_stores_zeros_elsewhere(a, b):
    vector = SparseVector(a, np.arange(1, a.nnz + 1, dtype=np.float32))
    dense = vector.dense()
    restricted = vector.restrict(b)
    assert restricted.mask.same(b)
    np.testing.assert_array_equal(restricted.values, dense[b.indices])


@given(masks(), masks())
def test_positions_of_a_subset_point_at_its_indices(a, b):
    both = a.intersection(b)
    np.testing.assert_array_equal(a.indices[a.positions_of(both)], both.indices)
    if not stored(b) <= stored(a):
        with pytest.raises(ValueError, match="subset"):
            a.positions_of(b)


def test_a_model_mask_always_stores_what_is_never_pruned():
    layout = Layout.of([("w", (2, 3), PRUNABLE), ("b", (2,), DENSE)])
    assert Mask.of_model([1, 4], layout).indices.tolist() == [1, 4, 6, 7]
    assert Mask.of_model([1, 4], layout).below(6).density == pytest.approx(2 / 6)


def test_another_number_of_values_than_indices_is_refused():
    with pytest.raises(MalformedMessage, match="3 mask indices"):
        SparseVector(Mask.full(3), np.zeros(2, np.float32))


def test_masks_with_equal_digest_are_equal():
    a = Mask(np.array([1, 2], np.int32), 5)
    assert a.digest == Mask(np.array([1, 2], np.int64), 5).digest
    assert a.digest != Mask(np.array([1, 2], np.int32), 6).digest
    assert a.digest != Mask(np.array([1, 3], np.int32), 5).digest


@given(st.sets(st.integers(0, 40)), st.lists(st.integers(-1, 45), min_size=1))
def test_as_many_positions_are_counted_as_lie_below(stored, ends):
    indices = np.array(sorted(stored), np.int32)
    assert count_below(indices, ends).tolist() == [sum(i < end for i in stored) for end in ends]
    assert count_below(indices, np.array(ends, np.int64)).tolist() == count_below(indices, ends).tolist()


def test_the_last_position_is_counted_below_any_end_beyond_it():
    mask = Mask(np.array([0, MAX_SIZE - 1], np.int32), MAX_SIZE)
    assert [mask.num_below(end) for end in (0, MAX_SIZE - 1, MAX_SIZE, 2**40)] == [0, 1, 2, 2]


def test_the_digest_is_of_the_size_and_the_indices_as_little_endian_integers():
    written = b"\5" + bytes(7) + b"\1\0\0\0" + b"\4\0\0\0"
    assert Mask(np.array([1, 4], np.int32), 5).digest == hashlib.sha256(written).hexdigest()


def test_counting_and_naming_copy_no_indices():
    mask = Mask.full(1_000_000)
    tracemalloc.start()
    try:
        assert mask.num_below(500_000) == 500_000
        assert count_below(mask.indices, [3, 7]).tolist() == [3, 7]
        assert count_below(mask.indices, np.array([3, 7])).tolist() == [3, 7]
        assert len(mask.digest) == 64
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(-2, 35))
def test_top_k_takes_exactly_k_and_the_lowest_positions_among_equals(scores, k):
    # sorted() is stable, so equal scores stay in the order of their positions.
    expected = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[: max(k, 0)])
    assert top_k(np.array(scores, np.float32), k).tolist() == expected


@pytest.mark.parametrize(
    ("density", "size", "kept"),
    [
        (0.1, 65_824, 6_582),  # 65,824 - round(59,241.6) = 65,824 - 59,242
        (0.02, 50, 1),
        (1.0, 7, 7),
        (0.5, 10, 5),
        (0.5, 5, 3),  # 5 - round(2.5) = 5 - 2: what is pruned is rounded, to even.
        (0.001, 100, 0),  # 100 - round(99.9)
    ],
)
def test_a_density_keeps_all_but_the_rounded_share(density, size, kept):
    assert num_kept(density, size) == kept
