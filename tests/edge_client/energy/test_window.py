"""The integral over one window: exact where the arithmetic is known, and honest where it is not."""

from __future__ import annotations

import math

import pytest

from edge_client.energy.source import About, Accuracy
from edge_client.energy.window import Window


def about(tau_s: float = 0.0, period_s: float = 0.0, resolution: float = 0.0) -> About:
    return About("x", "power", "wall", "", "", Accuracy(0.0, resolution), period_s, 0.1, tau_s)


def window(what: About, samples: list[tuple[float, float]]) -> Window:
    made = Window(what, 0.1, 0.0)
    for at_s, power_w in samples:
        made.add(at_s, power_w)
    return made


def test_a_ramp_is_exact() -> None:
    ramp = [(n / 10, float(n)) for n in range(1, 21)]  # P = 10 t
    energy = window(about(), ramp).energy(2.0)
    assert energy is not None
    # The first sample, 1 W, counts back to the edge: 0.1 J instead of 0.05.
    assert energy.energy_j == pytest.approx(20.0 + 0.05)


def test_the_low_pass_is_undone() -> None:
    # A step from 5 to 11 W, seen as 11 - 6 exp(-t / 0.4).
    samples = [(n / 100, 11 - 6 * math.exp(-n / 40)) for n in range(101)]
    energy = window(about(tau_s=0.4), samples).energy(1.0)
    assert energy is not None
    assert energy.energy_j == pytest.approx(11.0, rel=1e-4)
    assert energy.raw_j == pytest.approx(11 - 6 * 0.4 * (1 - math.exp(-2.5)), rel=1e-4)


def test_readings_that_may_still_be_of_the_power_before_are_left_out() -> None:
    energy = window(about(period_s=0.035), [(0.0, 2.0), (0.06, 2.0), (0.08, 7.0), (0.2, 7.0)]).energy(0.3)
    assert energy is not None
    assert energy.energy_j == pytest.approx(2.1)


def test_a_window_without_a_settled_reading_is_as_uncertain_as_it_is_large() -> None:
    energy = window(about(period_s=0.035), [(0.0, 2.0), (0.05, 6.0)]).energy(0.05)
    assert energy is not None
    assert (energy.energy_j, energy.statistical_j) == (pytest.approx(0.3), pytest.approx(0.3))


def test_a_constant_power_has_a_constant_rounding_error() -> None:
    samples = [(n / 10, 5.0) for n in range(1, 101)]
    energy = window(about(resolution=0.04), samples).energy(10.0)
    assert energy is not None
    # 2 * 0.04 W / sqrt(12) * 10 s: a hundred samples do not make it smaller. The edges add sqrt(2) * tau, 0 here.
    assert energy.statistical_j == pytest.approx(2 * 0.04 / math.sqrt(12) * 10, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_sample(bad: float) -> None:
    energy = window(about(), [(0.1, 5.0), (0.2, bad), (0.3, 5.0)]).energy(0.4)
    assert energy is not None
    assert energy.energy_j == pytest.approx(2.0)


def test_a_gap_is_filled_like_the_rest_and_widens_the_uncertainty() -> None:
    whole = [(n / 10, 5.0) for n in range(1, 201)]
    holed = [sample for sample in whole if not 4.05 < sample[0] < 5.45]  # 1.5 of 20 s.
    good, poor = window(about(), whole).energy(20.0), window(about(), holed).energy(20.0)
    assert good is not None
    assert poor is not None
    assert poor.energy_j == pytest.approx(100.0)
    assert poor.statistical_j == pytest.approx(2 * 1.5 * 5.0 / math.sqrt(12))
    assert good.statistical_j == 0.0
    assert window(about(), holed).coverage(20.0) == pytest.approx(18.5 / 20)


def test_too_many_gaps_are_no_figure() -> None:
    assert window(about(), [(0.1, 5.0), (0.2, 5.0)]).energy(20.0) is None
    assert window(about(), []).energy(1.0) is None
