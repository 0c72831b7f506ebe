"""What a source of energy figures offers, and how its uncertainty is stated.

A source counts joules upwards from its start, as an electricity meter does. A failed read is a
gap: `read` returns None, and the next reading's `gaps` is higher, so that whoever takes a
difference knows that something is missing in between. A gap is never a zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Scope = Literal[
    "wall", "board_input", "module_input", "rails_sum", "soc_package", "cpu", "model", "none"
]  # What lies inside the figure, outermost first; figures compare only within one scope.


@dataclass(frozen=True)
class Reading:
    """A meter's position."""

    energy_j: float  # Since the source's start; never falls.
    gaps: int = 0  # Failed or implausible reads so far; joules may be missing for each.


@dataclass(frozen=True)
class Accuracy:
    """What is known of a source's errors, from data sheets and manuals rather than calibration."""

    relative: float  # Of the figure, k = 2: gain, attribution, model.
    resolution_j: float = 0.0  # Step of the counter.
    latency_s: float = 0.0  # A read may be so old: the counter is refreshed only that often.
    min_window_s: float = 0.0  # Figures over shorter windows are noise.

    def uncertainty_j(self, energy_j: float, duration_s: float) -> float:
        """Return the expanded uncertainty (k = 2) of the energy between two readings.

        Resolution and latency err uniformly at each of the two edges, hence 2 / 12 of the square.
        Below the least meaningful window it is at least the figure itself.
        """
        power_w = energy_j / duration_s if duration_s > 0 else 0.0
        edges = (self.resolution_j**2 + (self.latency_s * power_w) ** 2) * 2 / 12
        expanded = math.sqrt((self.relative * energy_j) ** 2 + 4 * edges)
        return max(expanded, energy_j) if duration_s < self.min_window_s else expanded


class EnergySource(Protocol):
    """A sensor or a model."""

    @property
    def name(self) -> str:
        """What stands in the report: "rapl:package-0", "model:cpu-time(rpi4b)"."""

    @property
    def scope(self) -> Scope:
        """What the figure covers."""

    @property
    def accuracy(self) -> Accuracy:
        """Its errors."""

    @property
    def poll_s(self) -> float | None:
        """Longest time between two reads that loses nothing; None if any will do."""

    def read(self) -> Reading | None:
        """Return the meter's position, or None where it could not be read."""


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
    """Energy is not wanted: every figure stays unknown."""

    name = "none"
    scope: Scope = "none"
    accuracy = Accuracy(relative=0.0)
    poll_s = None

    def read(self) -> Reading | None:
        """Return None, always."""
        return None
