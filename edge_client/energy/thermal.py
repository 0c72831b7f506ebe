"""Thermal zones (/sys/class/thermal/thermal_zone*/{type,temp}, in thousandths of a degree)."""

from __future__ import annotations

from pathlib import Path

from edge_client.energy.sysfs import KernelFile, folders, text

# -256 stands for "switched off" on Jetsons; a Jetson Nano's and TX's PMIC zone is a fixed 50 or 100.
PLAUSIBLE_C = (-30.0, 130.0)
DUMMIES = ("PMIC-Die",)
# JetPack's own maximum of the junctions; where it exists, the others add nothing.
BEST = ("tj-thermal", "tj")


class Thermal:
    """The hottest of a board's zones."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find the zones; their numbers move between boots, so only their types count."""
        zones = folders(root, "sys/class/thermal/thermal_zone*")
        named = {zone: text(zone / "type") for zone in zones}
        chosen = [zone for zone, kind in named.items() if kind in BEST] or [
            zone for zone, kind in named.items() if kind not in DUMMIES
        ]
        self.types = tuple(named[zone] for zone in chosen)
        self._files = [KernelFile(zone / "temp") for zone in chosen]

    def read_c(self) -> float | None:
        """Return the highest plausible temperature; None if no zone has one.

        A zone may have none now: a Jetson's GPU zone answers EAGAIN while the GPU sleeps.
        """
        found = []
        for file in self._files:
            try:
                temperature_c = file.integer() / 1000
            except (OSError, ValueError):
                continue
            if PLAUSIBLE_C[0] <= temperature_c <= PLAUSIBLE_C[1]:
                found.append(temperature_c)
        return max(found, default=None)
