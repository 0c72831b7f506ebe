"""The stated uncertainty follows from resolution, latency, gain and offset."""

import math

import pytest

from edge_client.energy.source import About, Accuracy, NoSource


def test_gain_scales_with_the_energy_and_offset_with_time() -> None:
    accuracy = Accuracy(relative=0.3, offset_w=0.8)
    # 0.3 * 10 J = 3 J and 0.8 W * 5 s = 4 J, as squares: 5 J
    assert accuracy.systematic_j(10.0, 5.0) == pytest.approx(5.0)


def test_resolution_errs_at_both_edges() -> None:
    # k = 2 times the root of two uniform errors: 2 * sqrt(2 * 6**2 / 12) = 2 * sqrt(6)
    assert Accuracy(relative=0.0, resolution=6.0).edges_j(10.0, 5.0) == pytest.approx(2 * math.sqrt(6))


def test_latency_costs_what_flows_while_the_counter_is_stale() -> None:
    # 100 J in 5 s are 20 W; 0.3 s late are 6 J, as above.
    assert Accuracy(relative=0.0, latency_s=0.3).edges_j(100.0, 5.0) == pytest.approx(2 * math.sqrt(6))


def test_no_time_is_no_division() -> None:
    assert Accuracy(relative=0.1, latency_s=1.0).edges_j(0.0, 0.0) == 0.0


def test_what_a_sensor_resolves_follows_from_its_dynamics() -> None:
    def resolves_s(**dynamics: float) -> float:
        return About("x", "power", "wall", "", "", Accuracy(0.0, min_window_s=0.05), **dynamics).resolves_s

    assert resolves_s() == 0.05
    assert resolves_s(tau_s=0.4, sample_s=0.1) == 0.4
    assert resolves_s(period_s=0.07, sample_s=0.1) == pytest.approx(0.28)
    assert resolves_s(sample_s=0.1) == 0.2  # Two samples.


def test_no_source_never_has_a_figure() -> None:
    with pytest.raises(ValueError, match="no energy source"):
        NoSource().read()
