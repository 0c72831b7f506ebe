from __future__ import annotations

import numpy as np

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.method import Mean
from protocol.methods.fedavg import FedAvg

LAYOUT = Layout.of([("w", (2,), PRUNABLE), ("b", (1,), DENSE)])


class Doubling:
    """Local training that doubles every weight."""

    layout = LAYOUT

    def scoring_batches(self, per_class):
        raise AssertionError("FedAvg scores nothing")

    gradient = scoring_batches

    def fit(self, model):
        return type(model)(model.mask, model.values * 2)


def test_a_round_adds_the_weighted_mean_of_what_training_changed():
    method = FedAvg()
    initial = np.array([1.0, -2.0, 4.0], np.float32)
    current = method.begin(LAYOUT, initial)
    received = method.broadcast("train", current, initial)
    uploaded = method.client("train", received, Doubling(), {})
    np.testing.assert_array_equal(uploaded.values, initial)  # 2 w - w
    # Two clients with 1 and 3 examples and deltas of 1 and 2: (1 * 1 + 3 * 2) / 4 = 1.75.
    assert [method.weight("train", n) for n in (1, 3)] == [1, 3]
    following = method.aggregate("train", current, Mean(np.full(3, 1.75), 2), LAYOUT)
    np.testing.assert_array_equal(following.weights, [2.75, -0.25, 5.75])
    assert following.mask.density == 1.0
