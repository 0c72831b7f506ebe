"""The energy of one stretch of time from samples of power. Pure: no clock, no sensor.

Samples are joined by straight lines (trapezoid). A sensor behind a first-order low pass of time
constant tau shows y where the power is p = y + tau * dy/dt, so over a window exactly

    E = integral(y dt) + tau * (y_end - y_begin)

The correction has an opposite twin in each neighbouring window: a round's total hardly changes.
Without a low pass the power may step at the very edge of a window. Then the reading at its
beginning belongs to what came before, and the first one that lies wholly inside is extended
backwards in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edge_client.energy.source import About, Accuracy, Reading

# Longer intervals than so many usual ones are not bridged: nobody knows what happened in them.
MAX_INTERVALS = 5
# Beyond its last reading a window is extended only so far: there is nothing on the other side.
MAX_EXTENSION = 2
# Below this share of covered time a window has no figure.
MIN_COVERAGE = 0.9


@dataclass(frozen=True)
class Energy:
    """What a window cost."""

    energy_j: float  # Corrected; may be negative by noise.
    raw_j: float  # Without the correction for the low pass.
    statistical_j: float  # k = 2: sampling, quantisation, edges.
    duration_s: float

    def uncertainty_j(self, accuracy: Accuracy) -> float:
        """Return the expanded uncertainty (k = 2), with the sensor's gain and offset."""
        return math.hypot(accuracy.systematic_j(self.energy_j, self.duration_s), self.statistical_j)

    def beyond(self, idle: Idle, accuracy: Accuracy) -> tuple[float, float]:
        """Return what it cost more than idling, and its uncertainty; the sensor's offset cancels."""
        net_j = self.energy_j - idle.power_w * self.duration_s
        idle_j = idle.uncertainty_w * self.duration_s
        return net_j, math.hypot(accuracy.relative * net_j, self.statistical_j, idle_j)


@dataclass(frozen=True)
class Idle:
    """What the board draws while it waits, as measured."""

    power_w: float
    uncertainty_w: float  # k = 2, without the sensor's gain and offset.
    duration_s: float


@dataclass
class Window:
    """Accumulates the samples between two edges, in constant memory."""

    about: About
    sample_s: float  # The usual interval.
    begin_s: float
    num_samples: int = 0
    covered_s: float = 0.0
    peak_w: float = -math.inf
    _integral_j: float = 0.0
    _unsettled_w: float | None = None  # The latest reading that may still be of the power before.
    _first: tuple[float, float] | None = None  # Time and watts of the first sample.
    _last: tuple[float, float] | None = None
    _changes: float = 0.0  # Sum of squared differences of neighbours: noise without the trend.
    _slopes: list[float] = field(default_factory=list)  # W/s of the first and the latest interval.

    @property
    def settle_s(self) -> float:
        """After a step, readings are wholly of the new power from this time on."""
        # One period until the register is refreshed, one that its value is the mean of.
        return 0.0 if self.about.tau_s else 2 * self.about.period_s

    def add(self, at_s: float, power_w: float) -> None:
        """Take in a sample; those out of order, or of before the sensor has settled, are left out."""
        if not math.isfinite(power_w) or (self._last is not None and at_s <= self._last[0]):
            return
        if at_s < self.begin_s + self.settle_s or (at_s == self.begin_s and not self.about.tau_s):
            self._unsettled_w = power_w
            return
        if self._last is None:
            self._first = at_s, power_w
            if at_s - self.begin_s <= self.settle_s + MAX_EXTENSION * self.sample_s:
                self._integral_j += power_w * (at_s - self.begin_s)
                self.covered_s += at_s - self.begin_s
        else:
            step_s, change_w = at_s - self._last[0], power_w - self._last[1]
            if step_s <= MAX_INTERVALS * self.sample_s:
                self._integral_j += (power_w + self._last[1]) / 2 * step_s
                self.covered_s += step_s
                self._changes += change_w**2
                self._slopes = [*self._slopes[:1], change_w / step_s]
        self._last = at_s, power_w
        self.num_samples += 1
        self.peak_w = max(self.peak_w, power_w)

    def coverage(self, end_s: float) -> float:
        """Return the share of the time until `end_s` for which the power is known."""
        duration_s = end_s - self.begin_s
        return min(1.0, (self.covered_s + self._tail_s(end_s)) / duration_s) if duration_s > 0 else 1.0

    def _tail_s(self, end_s: float) -> float:
        """Return the time from the last sample to the end, if short enough; none but after a failed read."""
        tail_s = 0.0 if self._last is None else end_s - self._last[0]
        return tail_s if tail_s <= MAX_EXTENSION * self.sample_s else 0.0

    def energy(self, end_s: float) -> Energy | None:
        """Return the energy until `end_s`; None if too little of the time is covered.

        A window too short for a single settled reading is as uncertain as its figure is large.
        """
        duration_s, coverage = end_s - self.begin_s, self.coverage(end_s)
        if self._first is None and self._unsettled_w is not None and duration_s <= 2 * self.settle_s:
            energy_j = self._unsettled_w * duration_s
            return Energy(energy_j, energy_j, abs(energy_j), duration_s)
        if self._first is None or self._last is None or duration_s <= 0 or coverage < MIN_COVERAGE:
            return None
        covered_j = self._integral_j + self._last[1] * self._tail_s(end_s)
        raw_j = covered_j / coverage  # What is not covered is taken to be like the rest.
        tau_s = self.about.tau_s
        change_w = self._last[1] - self._first[1] if tau_s else 0.0
        missing_s = (1 - coverage) * duration_s + self._tail_s(end_s)
        statistical_j = self._statistical_j(duration_s, change_w, missing_s)
        return Energy(raw_j + tau_s * change_w, raw_j, statistical_j, duration_s)

    def _statistical_j(self, duration_s: float, change_w: float, missing_s: float) -> float:
        """Return the expanded uncertainty (k = 2) of all but gain and offset."""
        assert self._first is not None
        assert self._last is not None
        accuracy, tau_s = self.about.accuracy, self.about.tau_s
        step_w = accuracy.resolution
        # A constant power has a constant rounding error: it does not average out.
        quantisation = (step_w * duration_s) ** 2 / 12 + 2 * (tau_s * step_w) ** 2 / 12
        intervals = max(1, self.num_samples - 1)
        noise_w2 = self._changes / (2 * intervals)
        # Few samples know little of their noise: Student's t, approximately.
        student = (1 + 1.2 / intervals) ** 2
        sampling = noise_w2 / max(1, self.num_samples) * duration_s**2 * student
        # Between samples a low-passed signal bends; a straight line errs by h^2/12 per change of slope.
        slopes = abs(self._slopes[-1]) + abs(self._slopes[0]) if self._slopes else 0.0
        bend = (self.sample_s**2 / 12 * slopes) ** 2 if tau_s else 0.0
        # A value may be one period old where the edge is taken.
        ageing = ((tau_s * self.about.period_s) ** 2 / 12) * sum(s**2 for s in self._slopes) if tau_s else 0.0
        tau = (accuracy.tau_relative / 2 * tau_s * change_w) ** 2
        # Without a low pass: the power may have stepped a period off the edge; it is extended there.
        edge = 0.0 if tau_s else 2 * noise_w2 * (self.settle_s + self.sample_s / 4) ** 2
        # What is missing lies somewhere between nothing and the peak.
        missing = (missing_s * max(self.peak_w, 0.0)) ** 2 / 12
        return 2 * math.sqrt(quantisation + sampling + bend + ageing + tau + edge + missing)


def counted(before: Reading, after: Reading, duration_s: float, accuracy: Accuracy) -> Energy | None:
    """Return the energy between two readings of a counter; None if joules are missing between them."""
    if after.gaps != before.gaps:
        return None
    energy_j = after.value - before.value
    return Energy(energy_j, energy_j, accuracy.edges_j(energy_j, duration_s), duration_s)
