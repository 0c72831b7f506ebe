"""A source corrected by an external meter: P = gain * P_source + offset, fitted over several loads.

Long windows of the meter calibrate what the source then says of short phases. The result belongs to
one board, one source, one supply and what hangs on it; its scope is the meter's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edge_client.energy.settings import Calibration
from edge_client.energy.source import Reading, Scope, Sensor
from protocol.errors import ConfigError

LEAST_POINTS = 3
LEAST_RANGE = 1.2  # Highest over lowest power: within less, gain and offset cannot be told apart.


class Calibrated:
    """A sensor whose figures are those of the meter that it was compared with."""

    def __init__(
        self, sensor: Sensor, calibration: Calibration, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Correct `sensor`.

        Raises:
            ConfigError: the calibration was made of another source.
        """
        about = sensor.about
        if calibration.source != about.name:
            raise ConfigError(
                f"[meter.calibration] is of {calibration.source}, but {about.name} is read here; calibrate anew "
                "(sparsefleet energy calibrate) or remove it"
            )
        accuracy = replace(
            about.accuracy,
            relative=calibration.relative,
            resolution=about.accuracy.resolution * calibration.gain,
            offset_w=0.0,  # It is in the fit, and what is left of it in the relative part.
        )
        self.about = replace(
            about,
            name=f"{about.name}*calibrated",
            scope=calibration.scope,
            accuracy=accuracy,
            covers=f"{about.covers}; calibrated against a meter",
            leaves_out="what has changed on the board since it was calibrated",
        )
        self._sensor, self._calibration, self._clock, self._start_s = sensor, calibration, clock, clock()

    def read(self) -> Reading:
        """See Sensor."""
        reading, fitted = self._sensor.read(), self._calibration
        if self.about.quantity == "power":
            return Reading(fitted.gain * reading.value + fitted.offset_w)
        offset_j = fitted.offset_w * (self._clock() - self._start_s)
        return Reading(fitted.gain * reading.value + offset_j, reading.gaps)


def fit(
    source: str, scope: Scope, watts: Sequence[float], reference_w: Sequence[float], reference_relative: float
) -> Calibration:
    """Return the line through the loads' mean powers; its uncertainty is the scatter and the meter's own.

    Raises:
        ConfigError: too few loads, or too much alike.
    """
    x, y = np.asarray(watts, float), np.asarray(reference_w, float)
    if len(x) < LEAST_POINTS or not x.min() > 0 or x.max() < LEAST_RANGE * x.min():
        low_w, high_w = x.min(initial=np.inf), x.max(initial=-np.inf)
        raise ConfigError(
            f"{source}: {len(x)} loads from {low_w:.2f} to {high_w:.2f} W are too few, or too much alike, to "
            "calibrate by; let the board do nothing else, and use all of its cores"
        )
    gain, offset_w = np.polyfit(x, y, 1)
    if not gain > 0:
        raise ConfigError(f"{source}: the meter falls as the source rises; is it another device's?")
    residual = y - (gain * x + offset_w)
    # Two parameters were fitted; k = 2.
    scatter = 2 * float(np.sqrt((residual**2).sum() / max(1, len(x) - 2))) / float(y.mean())
    relative = min(1.0, float(np.hypot(scatter, reference_relative)))
    return Calibration(
        source=source, scope=scope, gain=float(gain), offset_w=float(offset_w), relative=max(relative, 1e-4)
    )
