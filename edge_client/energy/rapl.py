"""RAPL: the energy counters of x86 processor packages, as Linux exports them (powercap).

    /sys/class/powercap/intel-rapl:N/name                  package-0
                                    /energy_uj             counts up, wraps at ...
                                    /max_energy_range_uj

AMD processors appear under the same names. Left out: sub-zones (core and uncore lie inside the
package), psys (its meaning depends on the firmware) and intel-rapl-mmio (a second view of the same
package). Memory outside the package, disk and network are not covered.

A package figure is that of ALL processes. With attribution "process" it is multiplied by this
process tree's share of the machine's busy CPU time, interval by interval: an estimate, named so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from edge_client.energy import cpu_time
from edge_client.energy.source import About, Accuracy, Reading, Unavailable

Attribution = Literal["package", "process"]
Clock = Callable[[], float]

POWERCAP = "sys/class/powercap"

# More than any package draws (the largest are rated near 500 W). A difference above it is not a
# wrap but a counter that was reset by a suspend, or was not read for too long.
MAX_PACKAGE_W = 1000.0

# A share of CPU time ignores clock rates, hyper-threads and the package's idle power. An
# engineering guess, not measured.
ATTRIBUTION_UNCERTAINTY = 0.3

_PACKAGE = Accuracy(
    relative=0.05,  # Published comparisons with meters: 2-5 %.
    resolution=61e-6,  # Intel's usual energy unit, 2^-14 J; AMD's is finer.
    latency_s=0.001,  # The counter is refreshed about every millisecond.
    min_window_s=0.05,  # Below, refresh and the noise that microcode adds (PLATYPUS) prevail.
)
_SHARE = Accuracy(ATTRIBUTION_UNCERTAINTY, _PACKAGE.resolution, latency_s=0.01, min_window_s=0.5)

_CURE = (
    "since Linux 5.10 only root may read it; allow it with: sudo chmod a+r "
    "/sys/class/powercap/intel-rapl:*/energy_uj (until the next boot; other users can then observe the "
    'processor\'s power), or use energy = "model"'
)


@dataclass
class _Package:
    """One package's counter, unwrapped."""

    name: str
    file: Path
    range_j: float | None  # None: unreadable, so a wrap cannot be told from a reset.
    last_s: float
    last_j: float

    def counter_j(self) -> float:
        """Return the raw counter. Raises OSError or ValueError."""
        return int(self.file.read_text()) / 1e6

    def advance(self, now_s: float) -> float | None:
        """Return the joules since the last call that could read; None where they cannot be told.

        Raises:
            OSError, ValueError: the counter cannot be read now; the next call makes up for it.
        """
        now_j = self.counter_j()
        change_j, elapsed_s = now_j - self.last_j, now_s - self.last_s
        self.last_j, self.last_s = now_j, now_s
        # One second more, because two reads may lie closer together than two refreshes.
        limit_j = MAX_PACKAGE_W * (elapsed_s + 1)
        if self.range_j is not None:
            if limit_j > self.range_j:  # It may have wrapped any number of times.
                return None
            change_j += self.range_j if change_j < 0 else 0.0
        return change_j if 0 <= change_j <= limit_j else None


class RaplSource:
    """All packages of the machine, summed."""

    def __init__(
        self,
        packages: list[_Package],
        attribution: Attribution,
        clock: Clock,
        process_s: Clock,
        busy_s: Callable[[], float | None],
    ) -> None:
        """Hold the packages; `find` makes one."""
        self._packages, self._clock, self._process_s, self._busy_s = packages, clock, process_s, busy_s
        self._by_share = attribution == "process"
        self._last_process_s, self._last_busy_s = process_s(), busy_s()
        self._energy_j, self._gaps = 0.0, 0
        name = "rapl:" + "+".join(package.name for package in packages)
        self.about = About(
            name=name + "*cpu-share" if self._by_share else name,
            quantity="energy",
            scope="soc_package",
            covers="this process's share, by CPU time, of the processor packages"
            if self._by_share
            else "the whole processor packages, all processes",
            leaves_out="memory outside the package, disk, network, screen, power supply",
            accuracy=_SHARE if self._by_share else _PACKAGE,
            period_s=0.001,
            # A share walks the process tree, which costs more than a counter; and counters wrap.
            sample_s=1.0 if self._by_share else 0.1,
        )

    def read(self) -> Reading:
        """See Sensor: the joules so far.

        After a reset or too long a pause the reading is good but the joules before it are not
        known: that counts as a gap of the phase before, not of the one that begins here.

        Raises:
            OSError, ValueError: a package, or the share, cannot be read now: a gap too, since
                another package may have advanced.
        """
        now_s = self._clock()
        try:
            parts = [package.advance(now_s) for package in self._packages]
            share = self._share() if self._by_share else 1.0
        except (OSError, ValueError):
            self._gaps += 1
            raise
        if None in parts:
            self._gaps += 1
        else:
            self._energy_j += share * sum(part for part in parts if part is not None)
        return Reading(self._energy_j, self._gaps)

    def _share(self) -> float:
        """Return this process tree's share of the busy CPU time since the last call, 0..1.

        Raises:
            ValueError: the machine's busy time cannot be read.
        """
        process_s, busy_s = self._process_s(), self._busy_s()
        if busy_s is None or self._last_busy_s is None:
            self._last_process_s, self._last_busy_s = process_s, busy_s
            raise ValueError("the machine's busy time cannot be read from /proc/stat")
        process_change_s, busy_change_s = process_s - self._last_process_s, busy_s - self._last_busy_s
        self._last_process_s, self._last_busy_s = process_s, busy_s
        if process_change_s <= 0:
            return 0.0
        # The machine's ticks are coarser than the process's clock, so the share can exceed 1.
        return min(1.0, process_change_s / busy_change_s) if busy_change_s > 0 else 1.0


def find(
    root: Path = Path("/"),
    attribution: Attribution = "package",
    clock: Clock = time.monotonic,
    process_s: Clock = cpu_time.process_tree_s,
    busy_s: Callable[[], float | None] | None = None,
) -> RaplSource | Unavailable:
    """Return the packages below `root` as a source, or why there is none."""
    zones = sorted((root / POWERCAP).glob("intel-rapl:*"))  # Sub-zones too; their names rule them out.
    found: list[_Package] = []
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            package = _Package(name, zone / "energy_uj", _range_j(zone), clock(), 0.0)
            package.last_j = package.counter_j()
        except PermissionError:
            return Unavailable("RAPL", f"no permission to read {zone / 'energy_uj'}", _CURE)
        except (OSError, ValueError) as error:
            return Unavailable("RAPL", f"{zone} cannot be read ({error})", 'use energy = "model"')
        found.append(package)
    if not found:
        where = "no processor package" if zones else "no intel-rapl zone"
        reason = f"{where} under {root / POWERCAP}"
        cure = 'boards, virtual machines and containers have none; use energy = "model"'
        return Unavailable("RAPL", reason, cure)
    return RaplSource(found, attribution, clock, process_s, busy_s or partial(cpu_time.machine_busy_s, root))


def _range_j(zone: Path) -> float | None:
    try:
        return int((zone / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
