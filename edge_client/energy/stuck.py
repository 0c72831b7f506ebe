"""A sensor that says the same while the load changes: its driver or its bus hangs, and its figures mean nothing.

Equal readings alone say little, since steps of a sensor are coarse and an idle board is quiet. So a power
sensor is stuck when bit-identical readings go on while this process takes half a core more in one second than
in another; a counter when it stands still while this process is busy.
"""

from __future__ import annotations

import math

from edge_client.energy.source import About

LEAST_READINGS = 20
LEAST_S = 5.0
PERIODS = 3  # A slow sensor repeats itself until it has a new value.
LEAST_CORES = 0.5  # Of change, or of work.
LEAST_W = 1.0  # No board takes less: a counter of coarse steps moves within resolution / LEAST_W.
LOOK_S = 1.0  # The load is the mean over so long.


class Stuck:
    """Watches one source's readings."""

    def __init__(self, about: About) -> None:
        """Models are no sensors: they stand still with the load that they are made of."""
        self._is_sensor = about.scope not in ("model", "none")
        self._counts = about.quantity == "energy"
        steps_s = 4 * about.accuracy.resolution / LEAST_W if self._counts else 0.0
        self._least_s = max(LEAST_S, PERIODS * about.period_s) + steps_s
        self._value, self._count = math.nan, 0
        self._begin_s, self._look = 0.0, (0.0, 0.0)  # The latter: when, and the CPU time then.
        self._low, self._high = math.inf, -math.inf  # Cores.

    def add(self, at_s: float, value: float, cpu_s: float) -> str:
        """Take in a reading, and this process's CPU time so far; return what is wrong, "" if nothing is."""
        if not self._is_sensor:
            return ""
        if value != self._value:
            self._value, self._count = value, 1
            self._begin_s, self._look = at_s, (at_s, cpu_s)
            self._low, self._high = math.inf, -math.inf
            return ""
        self._count += 1
        if at_s - self._look[0] >= LOOK_S:
            cores = (cpu_s - self._look[1]) / (at_s - self._look[0])
            self._low, self._high = min(self._low, cores), max(self._high, cores)
            self._look = at_s, cpu_s
        moved = self._high if self._counts else self._high - self._low
        lasted_s = at_s - self._begin_s
        if self._count < LEAST_READINGS or lasted_s < self._least_s or not moved >= LEAST_CORES:
            return ""
        return (
            f"stuck: {self._count} equal readings in {lasted_s:.0f} s, while the client took "
            f"{self._low:.1f} to {self._high:.1f} cores"
        )
