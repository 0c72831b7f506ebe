"""The stated uncertainty follows from resolution, latency and relative error."""

import math

import pytest

from edge_client.energy.source import Accuracy, NoSource


def test_a_relative_error_scales_with_the_energy() -> None:
    assert Accuracy(relative=0.3).uncertainty_j(10.0, 5.0) == pytest.approx(3.0)


def test_resolution_errs_at_both_edges() -> None:
    # k = 2 times the root of two uniform errors: 2 * sqrt(2 * 6**2 / 12) = 2 * sqrt(6)
    assert Accuracy(relative=0.0, resolution_j=6.0).uncertainty_j(10.0, 5.0) == pytest.approx(
        2 * math.sqrt(6)
    )


def test_latency_costs_what_flows_while_the_counter_is_stale() -> None:
    # 100 J in 5 s are 20 W; 0.3 s late are 6 J, as above.
    assert Accuracy(relative=0.0, latency_s=0.3).uncertainty_j(100.0, 5.0) == pytest.approx(2 * math.sqrt(6))


def test_errors_add_as_squares() -> None:
    # 0.05 * 100 = 5, and sqrt(24) from the resolution: sqrt(25 + 24) = 7
    assert Accuracy(relative=0.05, resolution_j=6.0).uncertainty_j(100.0, 5.0) == pytest.approx(7.0)


def test_a_window_too_short_is_as_uncertain_as_the_figure_is_large() -> None:
    accuracy = Accuracy(relative=0.05, min_window_s=0.05)
    assert accuracy.uncertainty_j(2.0, 0.049) == pytest.approx(2.0)
    assert accuracy.uncertainty_j(2.0, 0.05) == pytest.approx(0.1)


def test_no_time_is_no_division() -> None:
    assert Accuracy(relative=0.1, latency_s=1.0).uncertainty_j(0.0, 0.0) == 0.0


def test_no_source_never_has_a_figure() -> None:
    assert NoSource().read() is None
