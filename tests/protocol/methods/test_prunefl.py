from __future__ import annotations

import numpy as np

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.methods.prunefl import ADJUST, PruneFL
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of([("w", (8,), PRUNABLE), ("b", (1,), DENSE)])


def test_the_set_with_the_best_quotient_of_gain_and_time():
    """C = .125 * 8 = 1. Squares 9, 4, 1, .1: quotients 9/2, 13/3, 14/4 ...: one. With c = 4: 9/5, 13/6, 14/7: two."""
    squares = np.array([0.1, 4, 0, 9, 1, 0, 0, 0])
    none = np.empty(0, np.int32)
    assert PruneFL(0.75, overhead=0.125).best(squares, none).tolist() == [3]
    assert PruneFL(0.75, overhead=0.5).best(squares, none).tolist() == [1, 3]
    assert PruneFL(0.125, overhead=100.0).best(squares, none).tolist() == [3]  # The largest that is allowed.
    # With 0 in any case: 9.1 / 3, 13.1 / 4, 14.1 / 5: two more.
    assert PruneFL(0.75, overhead=0.125).best(squares, np.array([0])).tolist() == [0, 1, 3]


def test_the_mask_moves_to_where_gradients_are():
    rng = np.random.default_rng(0)
    initial = np.array([0.9, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
    wanted = np.array([0.9, 0.8, 0.0, 0, 6, 0, 0, 5, 1])
    clients = [Quadratic(np.eye(9), wanted + 0.01 * rng.standard_normal(9), LAYOUT) for _ in range(3)]
    made = Federation(PruneFL(0.375, every=3, overhead=1.0, prunable=1.0), clients, initial, training(0.2))
    assert made.current.mask.indices.tolist() == [0, 1, 2, 8]
    assert [made.method.stage(n) == ADJUST for n in (1, 2, 3, 6)] == [False, False, True, True]
    for _ in range(2):
        made.round()
        assert all(upload.mask.size == 9 for upload in made.uploads.values())
        assert made.current.mask.indices.tolist() == [0, 1, 2, 8]
    made.round()
    assert all(upload.mask.size == 18 for upload in made.uploads.values())
    assert made.current.mask.indices.tolist() == [0, 4, 7, 8]  # A layer never loses its largest.
    np.testing.assert_array_equal(made.current.weights[[4, 7]], 0.0)  # New weights start at zero.
    made.round()
    np.testing.assert_allclose(made.current.weights[[4, 7]], [1.2, 1.0], atol=0.02)  # A step of .2.


def test_a_layers_larger_weights_stay():
    initial = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1, 0.0])
    wanted = np.array([0.9, 0.8, 0.7, 0.6, 6, 0, 0, 5, 1])
    client = Quadratic(np.eye(9), wanted, LAYOUT)
    made = Federation(PruneFL(0.5, every=1, overhead=1.0, prunable=0.25), [client], initial, training(0.2))
    made.round()
    assert made.current.mask.indices.tolist() == [0, 1, 2, 4, 8]  # One of four goes, for what pulls most.
