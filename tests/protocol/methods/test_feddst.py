from __future__ import annotations

import numpy as np

from protocol.layout import PRUNABLE, Layout
from protocol.method import TRAIN, Mean, Turn
from protocol.methods.feddst import ADJUST, FedDST
from protocol.sparse import Mask, SparseVector
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of([("a", (4,), PRUNABLE), ("b", (4,), PRUNABLE)])


def test_the_smallest_go_and_come_where_the_loss_pulls():
    """In each layer one of two moves: share 1/2 in round 0. a: .1 goes, 9 pulls more than 8; b: -.2 goes, -7 pulls."""
    model = SparseVector(Mask([0, 1, 5, 6], 8), np.array([0.1, 5, 3, -0.2], np.float32))
    client = Quadratic(np.eye(8), [0, 5, 8, 9, -7, 3, 0, 1], LAYOUT)
    found = FedDST(0.5).moved(model, Turn(0, ADJUST, 0, training()), client)
    np.testing.assert_array_equal(found.mask.indices, [1, 3, 4, 5])
    np.testing.assert_array_equal(found.values, [5, 0, 0, 3])


def test_less_moves_in_later_rounds():
    model = SparseVector(Mask([0, 1, 5, 6], 8), np.array([0.1, 5, 3, -0.2], np.float32))
    client = Quadratic(np.eye(8), np.arange(8), LAYOUT)
    last = FedDST(0.5, last_adjustment=20).moved(model, Turn(20, ADJUST, 0, training()), client)
    assert last.mask.same(model.mask)
    method = FedDST(0.5, every=5, last_adjustment=10)
    assert [method.stage(n) == ADJUST for n in (4, 5, 6, 10, 15)] == [False, True, False, True, False]


def test_a_weight_is_averaged_over_those_that_store_it_and_the_largest_stay():
    """Masks [1,0], [0,1], [1,0] and weights [2,0], [0,3], [4,0]: [3, 3] over those that store it."""
    layout, method = Layout.of([("w", (3,), PRUNABLE)]), FedDST(0.67)
    mean = Mean(np.array([6.0, 3.0, 0.0]) / 3, 3, np.array([2 / 3, 1 / 3, 0.0]))
    start = method.begin(layout, np.ones(3, np.float32))
    found = method.aggregate(Turn(1, TRAIN, 0, training()), start, mean, layout)
    np.testing.assert_allclose(found.weights, [3, 3, 0])
    assert found.mask.indices.tolist() == [0, 1]


def test_the_density_holds_while_masks_move_and_the_task_is_learned():
    rng = np.random.default_rng(0)
    wanted = np.array([4, 0.1, 0.1, 3, 0.1, 5, 0.1, 2])
    clients = [Quadratic(np.eye(8), wanted + 0.05 * rng.standard_normal(8)) for _ in range(3)]
    made = Federation(FedDST(0.5, every=2, last_adjustment=30), clients, np.full(8, 0.5), training(0.3, 4))
    largest = {0, 3, 5}
    assert not largest <= set(made.current.mask.indices.tolist())
    for _ in range(30):
        made.round()
        assert made.current.mask.nnz == 4
    assert largest <= set(made.current.mask.indices.tolist())
