from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from protocol.errors import ConfigError
from protocol.methods.fedavg import FedAvg
from protocol.methods.scaffold import Scaffold
from tests.quadratic import Federation, Quadratic, federated_optimum, training


def some_quadratics() -> list[Quadratic]:
    rng = np.random.default_rng(0)
    return [Quadratic(np.diag(rng.uniform(0.2, 1, 6)), 3 * rng.standard_normal(6)) for _ in range(5)]


def controls(made: Federation) -> list[np.ndarray]:
    """Every c_i with what its next task would settle."""
    found = []
    for i, memory in enumerate(made.memories):
        c_i = np.array(memory.get("control", np.zeros(6)))
        if "pending_round" in memory and int(memory["pending_round"]) == made.averaged.get(i):
            c_i = c_i + memory["pending.moved"]
        found.append(c_i)
    return found


def test_one_round_by_hand():
    """One client, f = 1/2 (x - 8)^2, two steps of 1/2 from 0: y = 4, 6; c+ = 0 - 0 + (0 - 6) / (2 / 2) = -6."""
    made = Federation(Scaffold(), [Quadratic([[1.0]], [8.0])], [0.0], training(0.5, 2))
    made.clients[0].steps_per_epoch = 1
    made.round()
    np.testing.assert_array_equal(made.current.weights, [6])
    np.testing.assert_array_equal(made.current.state["control"], [-6])
    made.round()  # c - c_i = 0: as without, from 6: 7, 7.5; c+ = -6 + 6 + (6 - 7.5) = -1.5.
    np.testing.assert_array_equal(made.memories[0]["control"], [-6])
    np.testing.assert_array_equal(made.current.weights, [7.5])
    np.testing.assert_array_equal(made.current.state["control"], [-1.5])


def test_c_is_the_mean_of_all_c_i_whoever_takes_part_and_whatever_is_lost():
    made = Federation(Scaffold(), some_quadratics(), np.zeros(6), training(0.1, 5))
    rng = np.random.default_rng(1)
    for _ in range(30):
        cohort = rng.choice(5, 3, replace=False)
        made.round(cohort=cohort, lost=[i for i in cohort if rng.random() < 0.3])
        np.testing.assert_allclose(np.mean(controls(made), axis=0), made.current.state["control"], atol=1e-5)
    assert np.abs(controls(made)).max() > 0.5


def test_it_reaches_the_optimum_where_fedavg_stalls():
    gaps = {}
    for method in (Scaffold(), FedAvg()):
        made = Federation(method, some_quadratics(), np.zeros(6), training(0.2, 10))
        for _ in range(150):
            made.round()
        gaps[method.name] = np.abs(made.current.weights - federated_optimum(made.clients)).max()
    assert gaps["scaffold"] < 1e-4
    assert gaps["fedavg"] > 0.05


def test_momentum_is_refused():
    with pytest.raises(ConfigError, match="momentum = 0"):
        Scaffold().check(replace(training(), momentum=0.9), "f32")
