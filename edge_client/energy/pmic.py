"""The PMIC of a Raspberry Pi 5 and CM5: twelve rails, each with voltage and current, read through the firmware.

The sum of the rails leaves out all that is fed straight from 5 V (USB, HATs, NVMe, fan) and the
PMIC's own losses. The published calibration of one board against a USB-C meter adds what is typical
of those: P_input = 1.1451 * P_rails + 0.5879 W (jfikar/RPi5-power). Taken as +-10 % and +-0.3 W.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_client.energy.firmware import Firmware
from edge_client.energy.source import About, Accuracy, Reading, Unavailable

COMMAND = "pmic_read_adc"
RAILS = (
    *("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS"),
    *("0V8_SW", "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"),
)
GAIN, OFFSET_W = 1.1451, 0.5879
_LINE = re.compile(r"^\s*(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(-?[0-9.]+)[AV]\s*$", re.MULTILINE)


def rails_w(answer: str) -> dict[str, float]:
    """Return the watts of each rail. Paired by name: the indices of a rail's two values differ.

    Raises:
        ValueError: a rail lacks its current or voltage, so that a sum would be too small.
    """
    values = {(name, unit): float(number) for name, unit, number in _LINE.findall(answer)}
    missing = [name for name in RAILS if not {(name, "A"), (name, "V")} <= values.keys()]
    if missing:
        raise ValueError(f"the PMIC does not report {', '.join(missing)}")
    return {name: values[name, "A"] * values[name, "V"] for name in RAILS}


class Pmic:
    """The power at the board's input, by calibration from the sum of the rails."""

    about = About(
        name="pmic:calibrated",
        quantity="power",
        scope="board_input",
        covers="the twelve rails of the PMIC, and by a published calibration of one board what it loses",
        leaves_out="what USB devices, HATs, NVMe and fan draw from 5 V",
        # The converter's step is not published: the scatter of the samples stands for it.
        accuracy=Accuracy(relative=0.10, offset_w=0.3),
        period_s=0.0,
        sample_s=0.1,
    )

    def __init__(self, firmware: Firmware) -> None:
        """Ask this firmware."""
        self._firmware = firmware

    def read(self) -> Reading:
        """See Sensor."""
        return Reading(GAIN * sum(rails_w(self._firmware.ask(COMMAND)).values()) + OFFSET_W)


def find(root: Path) -> Pmic | Unavailable:
    """Return the PMIC, or why it cannot be asked."""
    firmware = Firmware.open(root)
    if isinstance(firmware, Unavailable):
        return Unavailable("PMIC", firmware.reason, firmware.cure)
    sensor = Pmic(firmware)
    try:
        sensor.read()
    except (OSError, ValueError) as error:
        return Unavailable(
            "PMIC", f"{firmware.path}: {error}", "only a Raspberry Pi 5 and CM5 have this PMIC"
        )
    return sensor
