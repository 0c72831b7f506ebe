"""Robust aggregation: what some liars cannot do, and that honest clients lose nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coordinator.aggregate import Accumulator
from coordinator.fleet import Fleet
from coordinator.robust import BLOCK, AggregationConfig, Robust
from protocol.errors import LimitExceeded
from protocol.sparse import Mask, SparseVector


def vector(values: list[float | None]) -> SparseVector:
    """None: not stored."""
    stored = [i for i, value in enumerate(values) if value is not None]
    mask = Mask(np.asarray(stored, np.int32), len(values))
    return SparseVector(mask, np.asarray([values[i] for i in stored], np.float32))


def robust(vectors: list[SparseVector], weights: list[int] | None = None, **config: object) -> np.ndarray:
    made = Robust(vectors[0].mask.size, AggregationConfig(**config))
    for one, weight in zip(vectors, weights or itertools.repeat(1), strict=False):
        made.fold(one, weight)
    return made.mean().values


def test_the_median_is_over_those_who_store_an_entry_times_their_share():
    vectors = [vector([1, 5, None]), vector([2, None, None]), vector([900, 7, None]), vector([3, 6, -4])]
    found = robust(vectors, rule="median")
    np.testing.assert_allclose(found, [2.5, 6 * 3 / 4, -4 * 1 / 4])
    assert robust([vector([8]), vector([2])], [1, 3], rule="median")[0] == 5  # Examples do not count.


def test_trimming_removes_as_many_at_both_ends():
    vectors = [vector([value]) for value in (1e6, 1, 2, 3, -1e6)]
    assert robust(vectors, rule="trimmed", trim=0.2)[0] == 2
    assert robust(vectors, rule="trimmed", trim=0.0)[0] == pytest.approx(6 / 5)


def test_clipping_pulls_a_far_update_to_the_median_distance_and_leaves_the_others():
    near = [vector([float(x), 0.0]) for x in (-1, 0, 1)]
    liar = vector([0.0, 1000.0])
    found = robust([*near, liar], rule="clip", radius=1.0)
    assert np.abs(found).max() < 1.0
    assert robust(near, rule="clip", radius=10.0) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("rule", ["median", "trimmed", "clip"])
def test_one_liar_of_five_moves_the_result_less_than_honest_clients_differ(rule):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(500)
    honest = [
        SparseVector(Mask.full(500), (truth + 0.1 * rng.standard_normal(500)).astype("f4")) for _ in range(4)
    ]
    liar = SparseVector(Mask.full(500), (-10 * truth).astype(np.float32))
    assert np.linalg.norm(robust([*honest, liar], rule=rule) - truth) < 0.25 * np.linalg.norm(truth)
    mean = Accumulator(500)
    for one in (*honest, liar):
        mean.fold(one, 1)
    assert np.linalg.norm(mean.mean().values - truth) > 2 * np.linalg.norm(truth)


@pytest.mark.parametrize("rule", ["median", "trimmed", "clip"])
def test_the_order_of_arrival_does_not_matter_and_blocks_leave_no_seams(rule):
    rng = np.random.default_rng(1)
    size = BLOCK + 1000
    vectors = []
    for _ in range(5):
        mask = Mask(np.flatnonzero(rng.random(size) < 0.3).astype(np.int32), size)
        vectors.append(SparseVector(mask, rng.standard_normal(mask.nnz).astype(np.float32)))
    found = robust(vectors, rule=rule)
    assert found.tobytes() == robust(vectors[::-1], rule=rule).tobytes()
    if rule == "median":
        for place in (0, BLOCK - 1, BLOCK, size - 1):
            stored = [v.dense()[place] for v in vectors if place in v.mask.indices]
            assert found[place] == pytest.approx(np.median(stored) * len(stored) / 5 if stored else 0.0)


def test_an_update_beyond_the_exact_sum_is_refused_and_not_kept():
    made = Robust(2, AggregationConfig(rule="median"))
    with pytest.raises(LimitExceeded):
        made.fold(vector([1e30, 0.0]), 1)
    with pytest.raises(ValueError, match="without updates"):
        made.mean()


def test_a_device_that_keeps_sending_rubbish_is_asked_no_more():
    fleet = Fleet()
    fleet.present = {"a": None, "b": None}
    assert [fleet.reject("a", 3) for _ in range(4)] == [False, False, True, False]
    assert fleet.trusted == ["b"]
