"""What every sensor and model offers, and how its uncertainty is stated.

A power sensor reads watts now: the meter samples it and integrates. An energy counter counts joules
upwards from its start, as an electricity meter does: the meter takes differences. The two are never
mixed. A failed read raises: it is a gap, and a gap is never a zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Scope = Literal[
    "wall", "board_input", "module_input", "rails_sum", "soc_package", "cpu", "model", "none"
]  # What lies inside the figure, outermost first; figures compare only within one scope.
Quantity = Literal["power", "energy"]
UNITS: dict[Quantity, str] = {"power": "W", "energy": "J"}


@dataclass(frozen=True)
class Reading:
    """A power sensor's watts now, or an energy counter's joules since its start."""

    value: float  # Watts may be negative next to zero; joules never fall.
    gaps: int = 0  # Of a counter: resets and the like so far; joules are missing for each.


@dataclass(frozen=True)
class Accuracy:
    """What is known of a source's errors, from data sheets and manuals rather than calibration."""

    relative: float  # Of the figure, k = 2: gain, attribution, model.
    resolution: float = 0.0  # Step of a reading, in watts or joules.
    offset_w: float = 0.0  # Constant error of the power, k = 2.
    latency_s: float = 0.0  # A counter is refreshed only so often.
    min_window_s: float = 0.0  # Figures over shorter windows are noise.
    tau_relative: float = 0.1  # Of the low pass's time constant, k = 2.

    def systematic_j(self, energy_j: float, duration_s: float) -> float:
        """Return what gain and offset leave uncertain (k = 2)."""
        return math.hypot(self.relative * energy_j, self.offset_w * duration_s)

    def edges_j(self, energy_j: float, duration_s: float) -> float:
        """Return what resolution and latency leave uncertain (k = 2) of a counter's difference.

        They err uniformly at each of the two edges, hence 2 / 12 of the square.
        """
        power_w = energy_j / duration_s if duration_s > 0 else 0.0
        return 2 * math.sqrt((self.resolution**2 + (self.latency_s * power_w) ** 2) * 2 / 12)


@dataclass(frozen=True)
class About:
    """What a figure is, as it stands in reports."""

    name: str  # "rapl:package-0", "ina3221:VDD_IN", "model:cpu-time(rpi4b)"
    quantity: Quantity
    scope: Scope
    covers: str
    leaves_out: str
    accuracy: Accuracy
    period_s: float = 0.0  # The sensor has a new value so often, which may be the mean of that time.
    sample_s: float | None = None  # The meter reads so often during a phase; None: only at its ends.
    tau_s: float = 0.0  # Time constant of the sensor's first-order low pass; 0: none.
    is_net: bool = False  # A model of what comes on top of an idle board: there is no idle to subtract.

    @property
    def unit(self) -> str:
        """Of a reading."""
        return UNITS[self.quantity]

    @property
    def resolves_s(self) -> float:
        """Shorter phases cannot be told apart by it."""
        sampling_s = 2 * self.sample_s if self.quantity == "power" and self.sample_s else 0.0
        return max(self.accuracy.min_window_s, self.tau_s, 4 * self.period_s, sampling_s)


class Sensor(Protocol):
    """A sensor or a model."""

    @property
    def about(self) -> About:
        """What it reads."""

    def read(self) -> Reading:
        """Return the reading of now.

        Raises:
            OSError, ValueError: it cannot be read, or what it says is no figure. The next read may
                succeed again.
        """


@dataclass(frozen=True)
class Unavailable:
    """Why a source cannot be used here, and what the user can do about it."""

    source: str
    reason: str
    cure: str

    def __str__(self) -> str:
        """One sentence for a log or an error."""
        return f"{self.source} is not available: {self.reason}; {self.cure}"


class NoSource:
    """Energy is not wanted, or nothing can tell it: every figure stays unknown."""

    about = About("none", "energy", "none", "nothing", "everything", Accuracy(relative=0.0))

    def read(self) -> Reading:
        """Raise ValueError, always."""
        raise ValueError("there is no energy source")
