"""A calibration is a line through mean powers; it belongs to one source and says how well it fits."""

from __future__ import annotations

import pytest

from edge_client.energy.calibration import Calibrated, fit
from edge_client.energy.settings import Calibration
from edge_client.energy.source import About, Accuracy, Quantity, Reading
from protocol.errors import ConfigError


class Fixed:
    def __init__(self, value: float, quantity: Quantity = "power") -> None:
        self.about = About("x", quantity, "rails_sum", "rails", "USB", Accuracy(0.1, 0.04, offset_w=0.3))
        self.value = value

    def read(self) -> Reading:
        return Reading(self.value, 2)


FITTED = Calibration(source="x", scope="wall", gain=1.2, offset_w=0.5, relative=0.04)


def test_watts_become_the_meters() -> None:
    sensor = Calibrated(Fixed(5.0), FITTED)
    assert sensor.read().value == pytest.approx(6.5)
    about = sensor.about
    assert (about.name, about.scope, about.accuracy.relative) == ("x*calibrated", "wall", 0.04)
    assert (about.accuracy.offset_w, about.accuracy.resolution) == (0.0, pytest.approx(0.048))


def test_a_counters_offset_runs_with_the_time() -> None:
    now_s = 100.0
    source = Fixed(0.0, "energy")
    sensor = Calibrated(source, FITTED, lambda: now_s)
    now_s, source.value = 110.0, 50.0
    assert sensor.read() == Reading(65.0, 2)  # 1.2 * 50 J + 0.5 W * 10 s


def test_a_calibration_of_another_source_is_refused() -> None:
    other = Calibration(source="y", scope="wall", gain=1.0, offset_w=0.0, relative=0.1)
    with pytest.raises(ConfigError, match=r"is of y, but x is read here"):
        Calibrated(Fixed(1.0), other)


def test_gain_and_offset_are_found_again() -> None:
    watts = [2.0, 4.0, 6.0, 8.0]
    found = fit("x", "wall", watts, [1.2 * w + 0.5 for w in watts], 0.03)
    assert (found.gain, found.offset_w) == (pytest.approx(1.2), pytest.approx(0.5))
    assert found.relative == pytest.approx(0.03)  # Nothing but the meter's own.


def test_scatter_widens_the_uncertainty() -> None:
    # Residuals of +-0.1 W around 5 W: y = x, four points, 2 sqrt(4 * 0.01 / 2) / 5 = 0.0566.
    found = fit("x", "wall", [2.0, 4.0, 6.0, 8.0], [2.1, 3.9, 5.9, 8.1], 0.0)
    assert found.relative == pytest.approx(0.0566, abs=1e-4)


@pytest.mark.parametrize(
    ("watts", "reference_w", "said"),
    [
        ([2.0, 4.0], [2.0, 4.0], "too few"),
        ([2.0, 2.1, 2.2], [2.0, 2.1, 2.2], "too much alike"),
        ([2.0, 4.0, 6.0], [6.0, 4.0, 2.0], "another device's"),
    ],
)
def test_loads_that_say_nothing_are_refused(watts: list[float], reference_w: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit("x", "wall", watts, reference_w, 0.03)
