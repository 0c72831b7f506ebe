"""What slows a board down, or lets its supply sag, since the last look.

Raspberry Pi   get_throttled, from the firmware or from sysfs; rpi_volt's alarm
Jetson         cooling devices named *-throttle-alert and hot-surface-alert; soctherm_oc's event counters
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edge_client.energy.firmware import Firmware
from edge_client.energy.source import Unavailable
from edge_client.energy.sysfs import KernelFile, folders, text

UNDER_VOLTAGE, FREQUENCY_CAPPED, THROTTLED, SOFT_LIMIT = (
    "under-voltage",
    "frequency-capped",
    "throttled",
    "soft-temperature-limit",
)
OVER_CURRENT = "over-current"
_BITS = (UNDER_VOLTAGE, FREQUENCY_CAPPED, THROTTLED, SOFT_LIMIT)


class Throttling(Protocol):
    """One place to look."""

    def flags(self) -> set[str]:
        """Return what is so now or was so since the last call; empty where it cannot be told."""


def pi_flags(bits: int) -> tuple[set[str], int]:
    """Return the conditions of now in the firmware's word, and its sticky bits.

    Bits 0-3 are now; 16-19 say that it happened since they were last cleared, which the kernel's
    raspberrypi-hwmon driver does every two seconds. So only a sticky bit that has risen is news.
    """
    return {name for bit, name in enumerate(_BITS) if bits >> bit & 1}, bits >> 16 & 0xF


class _PiWord:
    """The firmware's word, whoever hands it out."""

    _sticky = 0xF  # What stuck before the first look is no news.

    def word(self) -> int:
        """Return it. Raises OSError or ValueError."""
        raise NotImplementedError

    def flags(self) -> set[str]:
        """See Throttling."""
        try:
            now, sticky = pi_flags(self.word())
        except (OSError, ValueError):
            return set()
        risen = sticky & ~self._sticky
        self._sticky = sticky
        return now | {name for bit, name in enumerate(_BITS) if risen >> bit & 1}


class FirmwareWord(_PiWord):
    """Asked through the mailbox: on every model."""

    def __init__(self, firmware: Firmware) -> None:
        """Ask this firmware."""
        self._firmware = firmware

    def word(self) -> int:
        """See _PiWord: "throttled=0x50005"."""
        return int(self._firmware.ask("get_throttled").partition("=")[2], 16)


class SysfsWord(_PiWord):
    """The kernel's copy, refreshed every two seconds: hexadecimal without 0x."""

    def __init__(self, path: Path) -> None:
        """Read this file."""
        self._file = KernelFile(path)

    def word(self) -> int:
        """See _PiWord."""
        return int(self._file.bytes().strip(b"\0\n "), 16)


class Alarm:
    """A file that is not 0 while something is so."""

    def __init__(self, path: Path, name: str) -> None:
        """Read this file; `name` is what it means."""
        self._file, self._name = KernelFile(path), name

    def flags(self) -> set[str]:
        """See Throttling."""
        try:
            return {self._name} if self._file.integer() > 0 else set()
        except (OSError, ValueError):
            return set()


class EventCounter:
    """A file that counts upwards."""

    def __init__(self, path: Path, name: str) -> None:
        """Read this file; `name` is what it counts."""
        self._file, self._name = KernelFile(path), name
        self._last: int | None = None

    def flags(self) -> set[str]:
        """See Throttling."""
        try:
            count = self._file.integer()
        except (OSError, ValueError):
            return set()
        last, self._last = self._last, count
        return {self._name} if last is not None and count > last else set()


def find(root: Path = Path("/")) -> list[Throttling]:
    """Return all that this board has."""
    found: list[Throttling] = []
    for hwmon in folders(root, "sys/class/hwmon/hwmon*"):
        kind = text(hwmon / "name")
        if kind == "rpi_volt":
            found.append(Alarm(hwmon / "in0_lcrit_alarm", UNDER_VOLTAGE))
        elif kind == "soctherm_oc":
            meanings = (UNDER_VOLTAGE, OVER_CURRENT, OVER_CURRENT)  # Of oc1, oc2, oc3.
            found += [EventCounter(hwmon / f"oc{n}_event_cnt", name) for n, name in enumerate(meanings, 1)]
    for device in folders(root, "sys/class/thermal/cooling_device*"):
        kind = text(device / "type")
        if kind.endswith("-throttle-alert") or kind == "hot-surface-alert":
            found.append(Alarm(device / "cur_state", THROTTLED))
    firmware = Firmware.open(root)
    if not isinstance(firmware, Unavailable):
        found.append(FirmwareWord(firmware))
    else:
        found += [SysfsWord(path) for path in _words(root)]
    return found


def _words(root: Path) -> list[Path]:
    """Return the kernel's copy: soc/soc:firmware on a Pi 0-4, soc@107c000000/... on a Pi 5."""
    patterns = (
        "sys/devices/platform/soc*/*firmware*/get_throttled",
        "sys/devices/platform/*firmware*/get_throttled",
    )
    return [path for pattern in patterns for path in folders(root, pattern)][:1]
