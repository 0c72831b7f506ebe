"""The model for boards without a sensor: utilisation of all cores times their clock, between idle and full load.

    P = idle_w + (max_w - idle_w) * sum over cores(u_i * (f_i / f_max)^k) / cores

with k = 1 where the voltage is fixed and more where it follows the clock (the profile says). It is the
whole board's power, other programs included; GPU, radio and USB are not in it. u comes from
/proc/stat, whose ticks are 10 ms, f from cpufreq. A figure of this source is never to be compared
with one of a sensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from device_profiles import Profile
from edge_client.energy.source import About, Accuracy, Reading, Unavailable
from edge_client.energy.sysfs import KernelFile, folders, optional_integer, text

LEAST_INTERVAL_S = 0.05  # Below, the ticks of /proc/stat say nothing.


class LoadModel:
    """Counts the joules that the model gives, since it began."""

    def __init__(
        self, profile: Profile, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use `find`. Raises OSError or ValueError: /proc/stat cannot be read; AssertionError: no watts."""
        assert profile.idle_w is not None
        assert profile.max_w is not None
        assert profile.uncertainty is not None
        self.about = About(
            name=f"load-model:{profile.name}",
            quantity="energy",
            scope="model",
            covers="the board by its CPU load and clock, from published watts: " + profile.boundary,
            leaves_out="GPU, USB, HATs, radio beyond the average; nothing of it was measured on this board",
            accuracy=Accuracy(profile.uncertainty, latency_s=0.02, min_window_s=0.2),
            sample_s=0.5,
        )
        self._idle_w, self._span_w = profile.idle_w, profile.max_w - profile.idle_w
        self._exponent = profile.clock_exponent
        self._clock = clock
        self._stat = KernelFile(root / "proc/stat")
        self._clocks: dict[int, tuple[KernelFile, float]] = {}
        for policy in folders(root, "sys/devices/system/cpu/cpufreq/policy*"):
            highest = optional_integer(policy / "cpuinfo_max_freq")
            for core in text(policy / "related_cpus").split():
                if highest:
                    self._clocks[int(core)] = KernelFile(policy / "scaling_cur_freq"), highest
        self._power_w = self._idle_w  # Of the last interval.
        self._energy_j = self._highest_j = 0.0
        self._last_s, self._last = clock(), self._ticks()

    def read(self) -> Reading:
        """See Sensor."""
        now_s = self._clock()
        elapsed_s = now_s - self._last_s
        if elapsed_s < LEAST_INTERVAL_S:
            # Too little for the ticks: as before, until the next reading knows better.
            return self._shown(self._energy_j + self._power_w * elapsed_s)
        ticks = self._ticks()
        load = 0.0
        for core, (busy, total) in ticks.items():
            busy_before, total_before = self._last.get(core, (busy, total))
            spent = total - total_before
            share = min(1.0, max(0.0, (busy - busy_before) / spent)) if spent > 0 else 0.0
            load += share * self._relative_clock(core) ** self._exponent
        self._power_w = self._idle_w + self._span_w * load / max(1, len(ticks))
        self._energy_j += self._power_w * elapsed_s
        self._last_s, self._last = now_s, ticks
        return self._shown(self._energy_j)

    def _shown(self, energy_j: float) -> Reading:
        """Return a reading that is never below an earlier one."""
        self._highest_j = max(self._highest_j, energy_j)
        return Reading(self._highest_j)

    def _ticks(self) -> dict[int, tuple[int, int]]:
        """Return busy and total ticks of each core."""
        found = {}
        for line in self._lines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit():
                user, nice, system, idle, waiting, irq, softirq = (int(field) for field in fields[:7])
                busy = user + nice + system + irq + softirq
                found[int(name[3:])] = busy, busy + idle + waiting
        if not found:
            raise ValueError(f"{self._stat.path} names no core")
        return found

    def _lines(self) -> list[str]:
        # A whole line each: the file is longer than what is read of it, and the cores come first.
        return self._stat.bytes().decode("ascii", "replace").split("\n")[:-1]

    def _relative_clock(self, core: int) -> float:
        """Return f / f_max, 1 where it is not known."""
        if core not in self._clocks:
            return 1.0
        file, highest = self._clocks[core]
        try:
            return min(1.0, file.integer() / highest)
        except (OSError, ValueError):
            return 1.0


def find(root: Path, profile: Profile) -> LoadModel | Unavailable:
    """Return the model of this board, or why there is none."""
    if profile.idle_w is None or profile.max_w is None or profile.uncertainty is None:
        reason = f"nobody has published idle and full-load watts of {profile.name}"
        return Unavailable("load model", reason, "attach a meter (docs/energy.md)")
    try:
        return LoadModel(profile, root)
    except (OSError, ValueError) as error:
        return Unavailable("load model", str(error), 'only Linux has /proc/stat; use energy = "model"')
