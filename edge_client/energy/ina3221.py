"""The INA3221 monitors on Jetson modules, in both of the kernel's layouts.

    JetPack 4    /sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0, in_voltage0_input (mV),
                 in_current0_input (mA); channels from 0
    JetPack 5+   /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label, in1_input (mV),
                 curr1_input (mA); channels from 1. in4-in7 are shunt voltages, not rails.

Which rails make a total is the profile's word: a child rail is never added to its parent. One step is
40 uV over the shunt and 8 mV of the bus (data sheet). The chip averages recursively, so it is a low
pass: with `samples` > 1 its time constant is the kernel's `update_interval` (0.42 s by NVIDIA's
default; 0.39-0.41 s were fitted to recorded traces of an Orin NX).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from device_profiles import PowerSource
from edge_client.energy.source import About, Accuracy, Reading, Unavailable
from edge_client.energy.sysfs import KernelFile, folders, integer, optional_integer, text

DRIVERS = "sys/bus/i2c/drivers"
CLASS = "sys/class/hwmon/hwmon*"
SHUNT_STEP_V, BUS_STEP_V = 40e-6, 8e-3
SHUNT_OFFSET_V = 80e-6  # Data sheet, worst case.
# Of a Nano, Orin Nano and Orin NX. JetPack 4 does not show it, and for a TX2 nobody has published it.
USUAL_SHUNT_OHM = 0.005
# NVIDIA's JetPack 4 driver: 64 averages x 3 channels x 2.2 ms.
JETPACK4_TAU_S = 0.422
# Whole modules, where no profile says more.
TOTALS = "VDD_IN|POM_5V_IN|5V_IN|VIN"
BESIDE = ("VDD_MUX",)  # The carrier board's, beside the module's: no part of it (TX1, TX2).
CHILDREN = {"VIN_SYS_5V0": "VDDQ_VDD2_1V8AO"}  # AGX Orin; no rail is its whole module.

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rail:
    """One channel."""

    label: str
    volts: KernelFile  # mV
    amperes: KernelFile  # mA
    shunt_ohm: float
    tau_s: float | None  # None: the files do not say.
    period_s: float

    def power_w(self) -> float:
        """Return the power of now. Raises OSError or ValueError."""
        millivolts = self.volts.integer()
        if not 0 <= millivolts <= 32_760:
            raise ValueError(f"{self.volts.path} says {millivolts} mV, outside the chip's range")
        milliamperes = self.amperes.integer()
        if abs(milliamperes) > 163.8 / self.shunt_ohm:  # The chip's shunt range in mV.
            raise ValueError(f"{self.amperes.path} says {milliamperes} mA, outside the chip's range")
        return millivolts * milliamperes / 1e6


class Ina3221:
    """The sum of the rails that make the total."""

    def __init__(self, about: About, rails: list[Rail]) -> None:
        """Use `find`."""
        self.about, self._rails = about, rails

    def read(self) -> Reading:
        """See Sensor."""
        return Reading(sum(rail.power_w() for rail in self._rails))


def rails(root: Path = Path("/")) -> list[Rail]:
    """Return every channel that is connected, in both layouts."""
    found: list[Rail] = []
    for device in folders(root, f"{DRIVERS}/ina3221x/*-*/iio:device*"):
        # 0: triggered, one unfiltered conversion for each read; 1: continuous, averaged.
        tau_s = JETPACK4_TAU_S if optional_integer(device / "running_mode") != 0 else 0.0
        for n in range(3):
            found += _channel(
                text(device / f"rail_name_{n}"),
                device / f"in_voltage{n}_input",
                device / f"in_current{n}_input",
                USUAL_SHUNT_OHM,
                tau_s,
                0.0066,
            )
    chips = folders(root, f"{DRIVERS}/ina3221/*-*/hwmon/hwmon*")
    # The same chips by another way, for a tree that was recorded without links.
    chips = chips or [hwmon for hwmon in folders(root, CLASS) if text(hwmon / "name") == "ina3221"]
    for hwmon in chips:
        samples = optional_integer(hwmon / "samples")
        interval_ms = optional_integer(hwmon / "update_interval")
        averaged_s: float | None = None
        period_s = 0.0066
        if samples is not None and interval_ms is not None and samples > 0:
            averaged_s = interval_ms / 1000 if samples > 1 else 0.0
            period_s = interval_ms / 1000 / samples
        for n in range(1, 4):
            shunt_ohm = (optional_integer(hwmon / f"shunt{n}_resistor") or 5000) / 1e6
            label = text(hwmon / f"in{n}_label")
            found += _channel(
                label, hwmon / f"in{n}_input", hwmon / f"curr{n}_input", shunt_ohm, averaged_s, period_s
            )
    return found


def _channel(
    label: str, volts: Path, amperes: Path, shunt_ohm: float, tau_s: float | None, period_s: float
) -> list[Rail]:
    if label in ("", "NC") or "shunt" in label:
        return []
    return [Rail(label, KernelFile(volts), KernelFile(amperes), shunt_ohm, tau_s, period_s)]


def find(root: Path, spec: PowerSource, tau_s: float | None = None) -> Ina3221 | Unavailable:
    """Return the rails that `spec` names as one sensor, or why they cannot be read.

    `tau_s` is the result of a step test, which knows better than files and profile.
    """
    known = rails(root)
    if not known:
        where = f"no channel under {root / DRIVERS}/ina3221, ina3221x or {root / CLASS}"
        return Unavailable(
            "INA3221", where, "a Jetson Nano 2GB has none; else check the kernel's ina3221 driver"
        )
    labels = ", ".join(rail.label for rail in known)
    chosen: list[Rail] = []
    for wanted in spec.rails or (TOTALS,):
        match = [rail for rail in known if rail.label in wanted.split("|")]
        if len(match) != 1:
            many = "no rail" if not match else "more than one rail"
            return Unavailable("INA3221", f"{many} {wanted} among {labels}", "choose another device profile")
        chosen += match
    chosen = _without_children(chosen)
    try:
        volts = [integer(rail.volts.path) / 1000 for rail in chosen]
        sensor = Ina3221(_about(chosen, volts, spec, tau_s), chosen)
        sensor.read()
    except PermissionError as error:
        return Unavailable(
            "INA3221", f"no permission to read {error.filename}", f"sudo chmod a+r {error.filename}"
        )
    except (OSError, ValueError) as error:
        return Unavailable("INA3221", f"it cannot be read ({error})", "check the kernel log for i2c errors")
    return sensor


def _without_children(chosen: list[Rail]) -> list[Rail]:
    """Leave out, with a warning, what flows through another of the rails: it would count twice."""
    labels = [rail.label for rail in chosen]
    parent = next((label for label in labels if label in TOTALS.split("|")), None)
    children = {label for label in labels if parent and label not in (parent, *BESIDE)}
    for label, child in CHILDREN.items():
        children |= {child} & set(labels) if label in labels else set()
    if children:
        _log.warning(
            "rails are left out, since they are part of another one rails=%s of=%s: name the parent alone, or "
            "its children alone, in the device profile",
            "+".join(sorted(children)),
            "+".join(label for label in labels if label not in children),
        )
    return [rail for rail in chosen if rail.label not in children]


def _about(chosen: list[Rail], volts: list[float], spec: PowerSource, tested_tau_s: float | None) -> About:
    tau_s = next((tau for tau in (tested_tau_s, chosen[0].tau_s, spec.tau_s) if tau is not None), 0.0)
    watts_of = [
        volt / rail.shunt_ohm for rail, volt in zip(chosen, volts, strict=True)
    ]  # Of a volt at the shunt.
    # The rails' rounding errors are independent: their squares add. Their offsets may not be.
    resolution_w = math.hypot(*(SHUNT_STEP_V * watts for watts in watts_of))
    offset_w = SHUNT_OFFSET_V * sum(watts_of)
    labels = [rail.label for rail in chosen]
    return About(
        name="ina3221:" + "+".join(labels),
        quantity="power",
        scope=spec.scope or "module_input",
        covers=spec.covers or "what flows through " + ", ".join(labels),
        leaves_out=spec.leaves_out or "the carrier board, fan, disks, USB",
        accuracy=Accuracy(0.03, resolution_w, offset_w),
        period_s=chosen[0].period_s,
        sample_s=0.1,
        tau_s=tau_s,
    )
