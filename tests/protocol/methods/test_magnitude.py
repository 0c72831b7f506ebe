from __future__ import annotations

import numpy as np
import pytest

from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout
from protocol.method import Global
from protocol.methods.magnitude import Magnitude
from protocol.quantise import Quantised, binary, uniform
from protocol.sparse import Mask, SparseVector
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of(
    [
        ("w", (6,), PRUNABLE),
        ("norm.weight", (2,), DENSE),
        ("norm.bias", (2,), DENSE),
        ("mean", (1,), STATISTIC),
    ]
)
WEIGHTS = np.array([0.9, -0.1, 0.8, 0.2, -0.7, 0.3, 1.0, 1.1, 0.05, -0.4, 0.0], np.float32)


def test_half_of_ten_distinct_entries_go_norms_and_biases_included():
    """Sorted: .05 .1 .2 .3 .4 | .7 .8 .9 1 1.1. The statistic takes no part."""
    found = Magnitude(0.5).pruned(WEIGHTS, LAYOUT)
    np.testing.assert_array_equal(
        found.dense(), np.array([0.9, 0, 0.8, 0, -0.7, 0, 1, 1.1, 0, 0, 0], np.float32)
    )
    assert found.mask.indices.tolist() == [0, 2, 4, 6, 7, 8, 9, 10]


def test_ties_at_the_threshold_survive():
    weights = WEIGHTS.copy()
    weights[[1, 3, 5]] = 0.4  # Now .05 .4 .4 .4 .4 | .7: the sixth smallest, .7, is the threshold.
    assert np.count_nonzero(Magnitude(0.5).pruned(weights, LAYOUT).dense()) == 5
    # 10 - round(.6 * 10) = 4 go by count, the fifth smallest is .4: none of its equals goes.
    assert np.count_nonzero(Magnitude(0.6).pruned(weights, LAYOUT).dense()) == 9


def test_both_directions_are_pruned_and_what_is_pruned_grows_back():
    clients = [Quadratic(np.eye(11), x + np.linspace(0, 1, 11)) for x in (1.0, -4.0)]
    for client in clients:
        client.layout = LAYOUT
    made = Federation(Magnitude(0.5), clients, WEIGHTS, training(0.5))
    down = made.method.broadcast(made.turn(), made.current, made.initial, LAYOUT)["weights"]
    assert np.count_nonzero(down.dense()) == 5
    made.round()
    np.testing.assert_array_equal(clients[0].seen[0], down.dense())
    for upload in made.uploads.values():
        assert np.count_nonzero(upload.dense()[:10]) == 5
    mean = sum(upload.dense() for upload in made.uploads.values()) / 2
    np.testing.assert_allclose(made.current.weights, mean)
    grown = np.setdiff1d(made.uploads[1].mask.indices[:-1], down.mask.indices)
    assert grown.size > 0  # Trained from zero.


def test_a_uniform_grid_has_zero_and_both_ends():
    v = np.array([-1.0, -0.3, 0.0, 0.29, 0.7], np.float32)
    np.testing.assert_allclose(uniform(v, 2), [-1, 0, 0, 0, 1])  # Levels -1, 0, 1.
    np.testing.assert_allclose(uniform(v, 4) * 7, [-7, -2, 0, 2, 5], atol=1e-6)  # .3 * 7 = 2.1, .7 * 7 = 4.9.
    assert np.abs(uniform(v, 8) - v).max() <= 0.5 / 127 + 1e-7
    np.testing.assert_array_equal(uniform(np.zeros(3, np.float32), 8), 0)
    np.testing.assert_array_equal(binary(np.array([-2, 0, 0.1], np.float32)), [-1, 1, 1])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_pass_runs_on_the_grid_the_gradient_passes_and_uploads_are_on_it(bits):
    client = Quadratic(np.eye(11), np.linspace(-1, 1, 11), LAYOUT)
    made = Federation(Magnitude(bits=bits), [client], WEIGHTS, training(0.1, 3))
    made.round()
    for at in client.seen:
        levels = at[:6] / np.abs(at[:6]).max() * (2 ** (bits - 1) - 1)
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-5)
    np.testing.assert_array_equal(client.seen[0][6:], WEIGHTS[6:])
    upload = made.uploads[0].values
    np.testing.assert_array_equal(uniform(upload[:6], bits), upload[:6])
    np.testing.assert_array_equal(made.method.model(made.current, LAYOUT).weights, upload)
    v = WEIGHTS.astype(np.float64)  # By hand: real weights move by the gradient at the quantised ones.
    for at in client.seen:
        v = v - 0.1 * client.gradient_at(at)
    np.testing.assert_allclose(upload[6:], v[6:], rtol=1e-5)
    np.testing.assert_allclose(upload[:6], uniform(v[:6].astype(np.float32), bits), rtol=1e-4, atol=1e-6)


def test_binary_connect_trains_real_weights_within_reach_and_sends_signs():
    step = Quantised(1, Mask.full(11), LAYOUT)
    v = np.array([3, -0.2, 0, -5, 0.5, 1, 9, 9, 9, 9], np.float32)
    np.testing.assert_array_equal(step.weights(v)[:6], [1, -1, 1, -1, 1, 1])
    step.project(v)
    np.testing.assert_array_equal(v[:6], np.array([1, -0.2, 0, -1, 0.5, 1], np.float32))
    np.testing.assert_array_equal(v[6:], 9)
    client = Quadratic(np.eye(11), np.linspace(-1, 1, 11), LAYOUT)
    made = Federation(Magnitude(bits=1), [client], WEIGHTS, training(0.1))
    made.round()
    assert set(made.uploads[0].values[:6]) == {-1.0, 1.0}


def test_pruned_weights_stay_zero_on_any_grid():
    model = SparseVector(Mask.of_model([0, 3], LAYOUT), np.array([1, -0.01, 1, 1, 0, 0, 0], np.float32))
    found = Magnitude(0.5, bits=4).quantised(model, LAYOUT)
    assert found.mask.same(model.mask)
    assert not found.dense()[[1, 2, 4, 5]].any()
    current = Global(model.dense(), model.mask)
    assert Magnitude(0.5).model(current, LAYOUT).weights.tobytes() == model.dense().tobytes()
