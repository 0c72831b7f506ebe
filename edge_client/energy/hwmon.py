"""Power monitors with a kernel driver: INA219, 220, 226, 230, 231, 260, 228, 237, 238, USB-C meters.

    /sys/class/hwmon/hwmonN/name            ina226
                           /in1_input       bus voltage, mV
                           /curr1_input     mA, with its sign, which power1_input (uW) has lost
                           /energy1_input   uJ, INA228 only: counted by the chip, so nothing is missed
                           /shunt_resistor  uOhm as configured: the driver's default is 10 mOhm, and
                                            modules that carry 100 mOhm read ten times too much

Numbers move between boots: a monitor is known by its name, its label and its address on the bus.
"""

from __future__ import annotations

from pathlib import Path

from device_profiles import PowerSource
from edge_client.energy.source import About, Accuracy, Reading, Scope, Unavailable
from edge_client.energy.sysfs import KernelFile, folders, integer, optional_integer, text

# Gain (k = 2; data sheets, with 1 % for the shunt), step of the current in A and of the voltage in V.
# The gains of INA228, 237, 238 and of the USB-C meter are guesses by analogy.
CHIPS = {
    "ina219": (0.03, 0.001, 0.004),
    "ina220": (0.03, 0.001, 0.004),
    "ina226": (0.015, 0.001, 0.00125),
    "ina230": (0.015, 0.001, 0.00125),
    "ina231": (0.015, 0.001, 0.00125),
    "ina260": (0.01, 0.00125, 0.00125),
    "ina228": (0.015, 0.001, 0.001),
    "ina237": (0.015, 0.001, 0.003125),
    "ina238": (0.015, 0.001, 0.003125),
    "powerz": (0.02, 0.001, 0.001),
}
USUAL_PERIOD_S = 0.07  # INA219's slowest conversion is 68 ms.
MAX_W = 1000.0


class Monitor:
    """One monitor, read as watts."""

    def __init__(self, about: About, hwmon: Path) -> None:
        """Use `find`."""
        self.about = about
        self._volts, self._amperes = KernelFile(hwmon / "in1_input"), KernelFile(hwmon / "curr1_input")

    def read(self) -> Reading:
        """See Sensor."""
        power_w = self._volts.integer() * self._amperes.integer() / 1e6
        if abs(power_w) > MAX_W:
            raise ValueError(f"{self._amperes.path.parent} says {power_w:.0f} W")
        return Reading(power_w)


class Accumulator:
    """One monitor that counts energy itself."""

    def __init__(self, about: About, hwmon: Path) -> None:
        """Use `find`."""
        self.about = about
        self._file = KernelFile(hwmon / "energy1_input")
        self._last_j = self._file.integer() / 1e6
        self._energy_j, self._gaps = 0.0, 0

    def read(self) -> Reading:
        """See Sensor. A counter that fell was reset: a gap."""
        now_j = self._file.integer() / 1e6
        change_j, self._last_j = now_j - self._last_j, now_j
        if change_j < 0:
            self._gaps += 1
        else:
            self._energy_j += change_j
        return Reading(self._energy_j, self._gaps)


def monitors(root: Path) -> dict[str, Path]:
    """Return the folder of each monitor by what tells it apart: "ina226@1-0040", or a label."""
    found = {}
    for hwmon in folders(root, "sys/class/hwmon/hwmon*"):
        if (kind := text(hwmon / "name")) not in CHIPS:
            continue
        label = text(hwmon / "in1_label") or text(hwmon / "label")
        device = hwmon / "device"
        place = label or (device.resolve().name if device.exists() else hwmon.name)
        found[f"{kind}@{place}"] = hwmon
    return found


def find(root: Path, spec: PowerSource) -> Monitor | Accumulator | Unavailable:
    """Return the monitor whose name holds `spec.rails`, or the only one there is."""
    known = monitors(root)
    matching = {
        name: hwmon
        for name, hwmon in known.items()
        if all(name.endswith(f"@{w}") or name == w for w in spec.rails)
    }
    if not matching:
        kinds = ", ".join(known) or "no power monitor"
        wanted = f"none is {' '.join(spec.rails)}" if spec.rails and known else "nothing to read"
        return Unavailable(
            "hwmon",
            f"{kinds} under {root / 'sys/class/hwmon'}, {wanted}",
            "docs/energy.md shows how to attach one",
        )
    if len(matching) > 1:
        names = ", ".join(matching)
        return Unavailable(
            "hwmon",
            f"several monitors, {names}, and none is known to be the total",
            'name one: [meter] monitor = "NAME"',
        )
    ((name, hwmon),) = matching.items()
    try:
        counts = (hwmon / "energy1_input").exists()
        sensor = (Accumulator if counts else Monitor)(_about(name, hwmon, spec, counts), hwmon)
        sensor.read()
    except PermissionError as error:
        return Unavailable(
            "hwmon", f"no permission to read {error.filename}", f"sudo chmod a+r {error.filename}"
        )
    except (OSError, ValueError) as error:
        return Unavailable("hwmon", f"{name} cannot be read ({error})", "check its wiring and the kernel log")
    return sensor


def _about(name: str, hwmon: Path, spec: PowerSource, counts: bool) -> About:
    relative, step_a, step_v = CHIPS[name.partition("@")[0]]
    volts, amperes = integer(hwmon / "in1_input") / 1000, integer(hwmon / "curr1_input") / 1000
    step_w = ((volts * step_a) ** 2 + (amperes * step_v) ** 2) ** 0.5
    interval_ms = optional_integer(hwmon / "update_interval")
    shunt = optional_integer(hwmon / "shunt_resistor")
    scope: Scope = spec.scope or "board_input"
    period_s = USUAL_PERIOD_S if interval_ms is None else interval_ms / 1000
    configured = f" (shunt configured as {shunt / 1000:g} mOhm)" if shunt else ""
    return About(
        name=f"hwmon:{name}",
        quantity="energy" if counts else "power",
        scope=scope,
        covers=(spec.covers or "what is wired behind its shunt") + configured,
        leaves_out=spec.leaves_out or "what is wired past it; the supply's own loss",
        accuracy=Accuracy(relative, 1e-6 if counts else step_w, latency_s=period_s if counts else 0.0),
        period_s=period_s,
        sample_s=0.1,
    )
