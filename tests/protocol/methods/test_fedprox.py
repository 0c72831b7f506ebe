from __future__ import annotations

import numpy as np

from protocol.methods.fedavg import FedAvg
from protocol.methods.fedprox import FedProx, Proximal
from tests.quadratic import Federation, Quadratic, training


def test_the_term_pulls_back_to_the_global_weights():
    """Mu (w - w_t) = 0.5 * ([3, -1] - [1, 1]) = [1, -1], beside the gradient."""
    step = Proximal(np.array([1, 1], np.float32), 0.5)
    found = step.gradient(np.array([10, 10], np.float32), np.array([3, -1], np.float32))
    np.testing.assert_array_equal(found, [11, 9])


def test_clients_stay_nearer_than_in_fedavg_and_mu_0_is_fedavg():
    moved = {}
    for name, method in {"fedavg": FedAvg(), "0": FedProx(0.0), "1": FedProx(1.0)}.items():
        made = Federation(method, [Quadratic(np.eye(3), [4, 4, 4])], np.zeros(3), training(0.1, 50))
        made.round()
        moved[name] = made.current.weights
    np.testing.assert_array_equal(moved["fedavg"], moved["0"])
    # Local optimum of 1/2 (w - 4)^2 + 1/2 w^2: w = 2.
    np.testing.assert_allclose(moved["1"], 2.0, atol=0.01)
