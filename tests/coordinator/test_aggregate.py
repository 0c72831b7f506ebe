from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from coordinator.aggregate import Accumulator
from protocol.errors import LimitExceeded
from protocol.sparse import Mask, SparseVector


def dense(*values: float) -> SparseVector:
    return SparseVector(Mask.full(len(values)), np.array(values, np.float32))


def test_the_mean_is_weighted_and_missing_entries_count_as_zero():
    accumulator = Accumulator(3)
    accumulator.fold(dense(1.0, 2.0, 3.0), 1)
    accumulator.fold(SparseVector(Mask(np.array([2], np.int32), 3), np.array([7.0], np.float32)), 3)
    # (1 * 1) / 4, (1 * 2) / 4, (1 * 3 + 3 * 7) / 4
    np.testing.assert_array_equal(accumulator.mean().values, [0.25, 0.5, 6.0])
    assert accumulator.mean().num_updates == 2


def test_any_order_of_arrival_gives_the_same_bits():
    rng = np.random.default_rng(0)
    updates = [
        (
            SparseVector(
                Mask.full(500),
                (10.0 ** rng.uniform(-8, 3, 500) * rng.choice([-1, 1], 500)).astype(np.float32),
            ),
            n,
        )
        for n in (1, 7, 300, 5000, 60_000)
    ]
    means, floats = set(), set()
    for order in itertools.permutations(updates):
        accumulator, running = Accumulator(500), np.zeros(500)
        for vector, weight in order:
            accumulator.fold(vector, weight)
            running += vector.values.astype(np.float64) * weight
        means.add(accumulator.mean().values.tobytes())
        floats.add(running.tobytes())
    assert len(means) == 1
    assert len(floats) > 1  # What a running float64 sum does with the same updates.


def test_the_sum_is_exact_to_its_resolution():
    values, weights = [1e-5, -3.25, 0.1], [3, 50, 7]
    accumulator = Accumulator(1)
    for value, weight in zip(values, weights, strict=True):
        accumulator.fold(dense(value), weight)
    exact = sum(Fraction(float(np.float32(v))) * w for v, w in zip(values, weights, strict=True)) / sum(
        weights
    )
    # Three roundings to 2^-32, each off by at most half, divided by the total weight.
    bound = Fraction(3, 2) / 2**32 / sum(weights) + Fraction(1, 10**16)
    assert abs(Fraction(float(accumulator.mean().values[0])) - exact) <= bound


def test_what_would_overflow_is_refused_and_changes_nothing():
    accumulator = Accumulator(1)
    accumulator.fold(dense(2.0**20), 2**10)  # 2^30, half of the range.
    with pytest.raises(LimitExceeded):
        accumulator.fold(dense(2.0**20), 2**10)
    assert accumulator.mean().values[0] == 2.0**20
    assert accumulator.num_updates == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_a_number_is_refused(bad):
    with pytest.raises(LimitExceeded):
        Accumulator(1).fold(dense(bad), 1)


def test_a_round_without_updates_has_no_mean():
    with pytest.raises(ValueError, match="without updates"):
        Accumulator(3).mean()


def test_coverage_is_the_share_of_the_weight_that_stores_an_entry():
    """Masks [1,0], [0,1], [1,0], weights 1, 1, 2. Over those that store it: (1*2 + 2*4) / 3, and 3."""
    accumulator = Accumulator(2, counts_coverage=True)
    for place, value, weight in ((0, 2.0, 1), (1, 3.0, 1), (0, 4.0, 2)):
        vector = SparseVector(Mask(np.array([place]), 2), np.array([value], np.float32))
        accumulator.fold(vector, weight)
    mean = accumulator.mean()
    np.testing.assert_array_equal(mean.coverage, [0.75, 0.25])
    np.testing.assert_allclose(mean.values / mean.coverage, [10 / 3, 3.0])
