from __future__ import annotations

import numpy as np
import pytest

from protocol.layout import PRUNABLE, STATISTIC, Layout
from protocol.method import TRAIN, Global, Mean, Turn
from protocol.methods.fedopt import FedOpt
from tests.quadratic import training

LAYOUT = Layout.of([("w", (1,), PRUNABLE), ("mean", (1,), STATISTIC)])
TURN = Turn(1, TRAIN, 0, training())


def two_rounds(method: FedOpt) -> tuple[Global, Global]:
    current = method.begin(LAYOUT, np.zeros(2, np.float32))
    first = method.aggregate(TURN, current, Mean(np.array([1.0, 5.0]), 1), LAYOUT)
    return first, method.aggregate(TURN, first, Mean(np.array([2.0, 5.0]), 1), LAYOUT)


def test_server_momentum():
    first, second = two_rounds(FedOpt(beta1=0.5))
    np.testing.assert_array_equal(first.weights, [1, 5])
    np.testing.assert_array_equal(second.weights, [1 + 0.5 * 1 + 2, 10])  # Statistics are only averaged.


@pytest.mark.parametrize(
    ("optimizer", "v"),
    [
        ("adagrad", [0.01 + 1, 0.01 + 1 + 4]),
        ("adam", [0.75 * 0.01 + 0.25, 0.75 * (0.75 * 0.01 + 0.25) + 0.25 * 4]),
        # v + 0.25 d^2, since v < d^2 in both rounds.
        ("yogi", [0.01 + 0.25, 0.01 + 0.25 + 0.25 * 4]),
    ],
)
def test_adaptive_servers(optimizer, v):
    method = FedOpt(optimizer=optimizer, server_learning_rate=0.5, beta1=0.5, beta2=0.75, tau=0.1)
    m = [0.5, 0.5 * 0.5 + 0.5 * 2]
    steps = [0.5 * m[i] / (np.sqrt(v[i]) + 0.1) for i in range(2)]
    first, second = two_rounds(method)
    np.testing.assert_allclose(first.weights, [steps[0], 5], rtol=1e-6)
    np.testing.assert_allclose(second.weights, [steps[0] + steps[1], 10], rtol=1e-6)
    np.testing.assert_allclose(second.state["v"], v[1])
