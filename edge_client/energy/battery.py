"""The battery of a laptop or UPS board, while it discharges.

    /sys/class/power_supply/BAT0/status        Discharging
                                /power_now     uW, or current_now (uA, of either sign) times voltage_now (uV)

The figure is the whole machine's, screen included. Firmware refreshes it every 1 to 30 s.
"""

from __future__ import annotations

from pathlib import Path

from edge_client.energy.source import About, Accuracy, Reading, Unavailable
from edge_client.energy.sysfs import KernelFile, folders, text

SUPPLIES = "sys/class/power_supply"


class Battery:
    """One battery's discharge."""

    def __init__(self, supply: Path) -> None:
        """Read this supply."""
        self.about = About(
            name=f"battery:{supply.name}",
            quantity="power",
            scope="board_input",
            covers="the whole machine, screen and disks included, while it runs from its battery",
            leaves_out="the charger; nothing is read while it charges",
            # A guess: fuel gauges state 1-3 % of their range, and refresh slowly.
            accuracy=Accuracy(relative=0.10, resolution=0.1, min_window_s=120.0),
            period_s=10.0,
            sample_s=2.0,
        )
        self._status = KernelFile(supply / "status")
        self._power = KernelFile(supply / "power_now") if (supply / "power_now").exists() else None
        self._current, self._voltage = KernelFile(supply / "current_now"), KernelFile(supply / "voltage_now")

    def read(self) -> Reading:
        """See Sensor. A battery that does not discharge says nothing of what is drawn."""
        status = self._status.bytes().strip().decode("utf-8", "replace")
        if status != "Discharging":
            raise ValueError(f"the battery is {status!r}, not discharging")
        if self._power is not None:
            return Reading(abs(self._power.integer()) / 1e6)
        return Reading(abs(self._current.integer()) * self._voltage.integer() / 1e12)


class Charge:
    """How full the batteries are: the emptiest, in percent."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find them."""
        self._files = [KernelFile(supply / "capacity") for supply in _supplies(root)]

    def read_percent(self) -> float | None:
        """Return it; None where there is no battery, or none that can be read now."""
        found = []
        for file in self._files:
            try:
                percent = file.integer()
            except (OSError, ValueError):
                continue
            if 0 <= percent <= 100:
                found.append(float(percent))
        return min(found, default=None)


def _supplies(root: Path) -> list[Path]:
    found = [folder for folder in folders(root, f"{SUPPLIES}/*") if text(folder / "type") == "Battery"]
    return [folder for folder in found if text(folder / "scope") != "Device"]  # A mouse's is none of ours.


def find(root: Path) -> Battery | Unavailable:
    """Return the one battery, or why it says nothing."""
    found = _supplies(root)
    if len(found) != 1:
        many = "no battery" if not found else f"{len(found)} batteries"
        return Unavailable("battery", f"{many} under {root / SUPPLIES}", "use another source")
    sensor = Battery(found[0])
    try:
        sensor.read()
    except (OSError, ValueError) as error:
        return Unavailable("battery", str(error), "unplug the charger before the client starts")
    return sensor
