"""Unequal steps: how many, and that their weights optimise the objective of equal ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.pace import FINENESS, ROUNDING, entering, local_steps, weight


def test_as_many_steps_as_fit():
    assert local_steps(100, 0.5, 30.0) == 60
    assert local_steps(100, 0.1, 30.0) == 100  # Never more than the epochs have.
    assert local_steps(100, 5.0, 30.0) == 25  # A quarter, however slow.
    assert local_steps(100, None, 30.0) == 100  # Unknown: the first round tells.
    assert local_steps(1, 5.0, 0.001) == 1


@given(st.integers(1, 10_000), st.floats(1e-6, 1e3), st.floats(1e-3, 1e4))
@example(1000, 1.0000000000000002e-06, 0.001)
def test_steps_stay_within_bounds(full, step_s, target_s):
    steps = local_steps(full, step_s, target_s)
    assert max(1, full / 4) <= steps <= full
    assert steps * step_s <= target_s * (1 + ROUNDING) or steps <= full / 4 + 1


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_what_enters_an_update_is_the_sum_of_momentums_shares(steps, momentum):
    """With m = rho m + g in each step and x moved by m, gradient k of t enters (1 - rho^(t-k)) / (1 - rho) times."""
    moved = buffer = 0.0
    for _ in range(steps):
        buffer = momentum * buffer + 1.0
        moved += buffer
    assert entering(steps, momentum) == pytest.approx(moved)


def test_a_client_that_was_spared_nothing_weighs_as_ever():
    assert weight(37, 100, 100, 0.9) == 37 * FINENESS


def test_half_the_steps_weigh_twice():
    assert weight(37, 100, 50, 0.0) == 2 * 37 * FINENESS


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_fixed_point_is_that_of_equal_steps(momentum):
    """Two clients with quadratics, one of them spared most steps: a plain mean ends elsewhere."""
    optima, examples, full, made, rate = np.array([0.0, 1.0]), [30, 50], 20, [20, 5], 1e-3

    def trained(x: float, optimum: float, steps: int) -> float:
        buffer = 0.0
        for _ in range(steps):
            buffer = momentum * buffer + (x - optimum)
            x -= rate * buffer
        return x

    def ends(weights: list[float], steps: list[int]) -> float:
        x = 0.3
        for _ in range(1500):
            clients = [trained(x, optimum, t) for optimum, t in zip(optima, steps, strict=True)]
            x = float(np.average(clients, weights=weights))
        return x

    equal = ends([float(n) for n in examples], [full, full])
    assert equal == pytest.approx(50 / 80, abs=0.01)
    paced = ends([float(weight(n, full, t, momentum)) for n, t in zip(examples, made, strict=True)], made)
    assert paced == pytest.approx(equal, abs=0.01)
    assert abs(ends([float(n) for n in examples], made) - equal) > 0.2
