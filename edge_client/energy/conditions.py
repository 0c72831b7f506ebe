"""What the board was like during a phase: temperature, clock, throttling, under-voltage, battery.

Sampled once a second by the meter's thread, at both ends of each phase besides. Nothing here raises:
what cannot be read is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_client.energy.battery import Charge
from edge_client.energy.cpu_clock import CpuClock
from edge_client.energy.thermal import Thermal
from edge_client.energy.throttling import Throttling, find

EVERY_S = 1.0


@dataclass(frozen=True)
class Seen:
    """The conditions of one phase."""

    temperature_c: float | None = None  # Highest.
    clock_mhz: float | None = None  # Mean.
    throttling: tuple[str, ...] = ()  # Sorted; empty: nothing was seen, or nothing can tell.
    battery_percent: float | None = None  # At the end.


@dataclass
class Conditions:
    """Joins them to phases."""

    thermal: Thermal
    clock: CpuClock
    throttling: Sequence[Throttling]
    charge: Charge
    _temperatures: list[float] = field(default_factory=list)
    _flags: set[str] = field(default_factory=set)
    _due_s: float = 0.0

    def begin(self, now_s: float) -> None:
        """A phase begins: what counters have counted before is not its."""
        for one in self.throttling:
            one.flags()
        self._flags = set()
        self._temperatures = []
        self.clock.begin()
        self._look(now_s)

    def sample(self, now_s: float) -> None:
        """Look again, if a second has passed."""
        if now_s >= self._due_s:
            self._look(now_s)

    def end(self, now_s: float) -> Seen:
        """Return what was seen since `begin`."""
        self._look(now_s)
        highest = max(self._temperatures, default=None)
        charge = self.charge.read_percent()
        return Seen(highest, self.clock.mean_mhz(), tuple(sorted(self._flags)), charge)

    def now(self, now_s: float) -> Seen:
        """Return how the board is now, without a clock; the open phase sees it too."""
        temperature, flags = self._look(now_s)
        return Seen(temperature, None, tuple(sorted(flags)), self.charge.read_percent())

    def _look(self, now_s: float) -> tuple[float | None, set[str]]:
        self._due_s = now_s + EVERY_S
        temperature = self.thermal.read_c()
        if temperature is not None:
            self._temperatures = [max([temperature, *self._temperatures])]
        self.clock.sample()
        flags: set[str] = set().union(*(one.flags() for one in self.throttling))
        self._flags |= flags
        return temperature, flags


def watch(root: Path = Path("/")) -> Conditions:
    """Return what this board has to look at."""
    return Conditions(Thermal(root), CpuClock(root), find(root), Charge(root))
