from __future__ import annotations

import numpy as np
import pytest

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.methods.flash import WARM_UP, Flash, scaled
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of([("a", (10,), PRUNABLE), ("b", (30,), PRUNABLE), ("bias", (2,), DENSE)])


@pytest.mark.parametrize("mask", ["magnitude", "random"])
def test_the_clients_layer_densities_make_one_mask_that_stays(mask):
    rng = np.random.default_rng(0)
    large = np.concatenate([np.full(10, 5.0), rng.uniform(0, 1, 32)])  # Layer a matters.
    clients = [Quadratic(np.eye(42), large + 0.1 * rng.standard_normal(42), LAYOUT) for _ in range(3)]
    initial = rng.standard_normal(42).astype(np.float32)
    made = Federation(Flash(0.3, warmup_epochs=40, mask=mask), clients, initial, training(0.2))
    assert made.method.stage(0) == WARM_UP
    made.round()
    # 12 weights: all 10 of a, and 2 of b.
    (first,) = {tuple(made.current.mask.indices.tolist())}
    assert sum(i < 10 for i in first) == 10
    assert sum(10 <= i < 40 for i in first) == 2
    kept = made.current.mask.indices
    if mask == "random":
        np.testing.assert_array_equal(made.current.weights[kept], initial[kept])
    else:
        averaged = np.mean([client.optimum for client in clients], axis=0)
        np.testing.assert_allclose(made.current.weights[:10], averaged[:10], atol=0.01)
        largest = 10 + np.argsort(-made.uploads_mean()[10:40])[:2]
        assert sorted(largest) == [i for i in first if 10 <= i < 40]
    for _ in range(3):
        made.round()
        assert tuple(made.current.mask.indices.tolist()) == first
        assert all(upload.mask.same(made.current.mask) for upload in made.uploads.values())


def test_warm_up_takes_its_own_number_of_epochs():
    client = Quadratic(np.eye(42), np.ones(42), LAYOUT)
    Federation(Flash(0.5, warmup_epochs=7), [client], np.ones(42), training(0.1, 2)).round()
    assert len(client.seen) == 7


def test_densities_are_scaled_to_the_target_and_full_layers_pass_on_the_rest():
    # 10 and 30 weights, 12 wanted: 0.2 * 10 + 0.1 * 30 = 5, times 2.4.
    np.testing.assert_allclose(scaled(np.array([0.2, 0.1]), LAYOUT, 0.3), [0.48, 0.24])
    # Times 12 / 11: the first is full, 2 of 30 are left.
    np.testing.assert_allclose(scaled(np.array([1.0, 1 / 30]), LAYOUT, 0.3), [1.0, 2 / 30])
    assert scaled(np.array([1.0, 1.0]), LAYOUT, 1.0) == [1.0, 1.0]
