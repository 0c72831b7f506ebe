from __future__ import annotations

import numpy as np

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.methods.zerofl import SparsePass, ZeroFL
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of([("first", (4,), PRUNABLE), ("second", (4,), PRUNABLE), ("b", (1,), DENSE)])
V = np.array([0.1, 0.2, 0.3, 0.4, -0.5, 0.1, 0.9, -0.2, 7], np.float32)


def test_a_pass_runs_on_the_largest_weights_of_all_layers_but_the_first():
    found = SparsePass(LAYOUT, 0.5).weights(V)
    np.testing.assert_array_equal(found, np.array([0.1, 0.2, 0.3, 0.4, -0.5, 0, 0.9, 0, 7], np.float32))


def test_dense_weights_move_by_gradients_of_sparse_passes_and_uploads_keep_more():
    client = Quadratic(np.eye(9), np.zeros(9), LAYOUT)
    made = Federation(ZeroFL(0.5, mask_ratio=0.25), [client], V, training(0.5))
    made.round()
    expected = V - 0.5 * SparsePass(LAYOUT, 0.5).weights(V)  # The gradient at w is w.
    kept = np.sort(np.abs(expected[:8]))[-6:]  # 8 - round(.25 * 8)
    upload = made.uploads[0]
    np.testing.assert_array_equal(np.sort(np.abs(upload.values[:6])), kept)
    np.testing.assert_array_equal(upload.dense()[upload.mask.indices], expected[upload.mask.indices])
    np.testing.assert_array_equal(made.current.weights, upload.dense())


def test_changes_are_added():
    client = Quadratic(np.eye(9), np.zeros(9), LAYOUT)
    made = Federation(ZeroFL(1.0, upload="delta"), [client], V, training(0.5))
    made.round()
    np.testing.assert_allclose(made.current.weights, V / 2)


def test_saved_inputs_of_all_layers_but_the_first_are_pruned():
    seen = []

    class Watching(Quadratic):
        def fit(self, model, step=None, num_steps=None):
            seen.append(dict(step.activations))
            return super().fit(model, step, num_steps)

    for method in (ZeroFL(0.5), ZeroFL(0.5, activation_pruning=False)):
        Federation(method, [Watching(np.eye(9), np.zeros(9), LAYOUT)], V, training()).round()
    assert seen == [{"second": 0.5}, {}]
    assert ZeroFL(0.5).prunes_activations
