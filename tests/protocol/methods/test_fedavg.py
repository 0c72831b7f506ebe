from __future__ import annotations

import numpy as np

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.messages import Training
from protocol.method import TRAIN, Mean, Turn
from protocol.methods.fedavg import FedAvg

TURN = Turn(1, TRAIN, 0, Training(local_epochs=1, batch_size=1, learning_rate=0.1))
LAYOUT = Layout.of([("w", (2,), PRUNABLE), ("b", (1,), DENSE)])


class Doubling:
    """Local training that doubles every weight."""

    layout = LAYOUT

    def scoring_batches(self, per_class):
        raise AssertionError("FedAvg scores nothing")

    gradient = scoring_batches

    def fit(self, model, step=None, num_steps=None):
        return type(model)(model.mask, model.values * 2)


def test_a_round_adds_the_weighted_mean_of_what_training_changed():
    method = FedAvg()
    initial = np.array([1.0, -2.0, 4.0], np.float32)
    current = method.begin(LAYOUT, initial)
    received = method.broadcast(TURN, current, initial, LAYOUT)
    uploaded = method.client(TURN, received, Doubling(), {})
    np.testing.assert_array_equal(uploaded.values, initial)  # 2 w - w
    # Two clients with 1 and 3 examples and deltas of 1 and 2: (1 * 1 + 3 * 2) / 4 = 1.75.
    assert [method.weight(TURN, n) for n in (1, 3)] == [1, 3]
    following = method.aggregate(TURN, current, Mean(np.full(3, 1.75), 2), LAYOUT)
    np.testing.assert_array_equal(following.weights, [2.75, -0.25, 5.75])
    assert following.mask.density == 1.0
