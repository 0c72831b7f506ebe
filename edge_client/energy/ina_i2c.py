"""INA219, INA226 and INA260 on the I2C bus, without a kernel driver (smbus2, an optional extra).

    registers      shunt voltage       bus voltage              scope of a reading
    INA219  0x40+  0x01, 10 uV signed  0x02, bits 15-3 of 4 mV  17 ms, mean of 32
    INA226         0x01, 2.5 uV        0x02, 1.25 mV            35 ms, mean of 16
    INA260         0x01, 1.25 mA       0x02, 1.25 mV            35 ms, mean of 16; its shunt is built in

The chips send the high byte first. A chip that the kernel has bound is refused: read it by hwmon.
Reading costs the board under test a little; for reference figures let another machine read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from edge_client.energy.source import About, Accuracy, Reading, Unavailable

CONFIG, SHUNT, BUS, MAKER, DIE = 0x00, 0x01, 0x02, 0xFE, 0xFF
TEXAS_INSTRUMENTS = 0x5449


class Bus(Protocol):
    """What is used of smbus2.SMBus."""

    def read_i2c_block_data(self, address: int, register: int, length: int) -> list[int]:
        """Return bytes."""

    def write_i2c_block_data(self, address: int, register: int, data: list[int]) -> None:
        """Write bytes."""


@dataclass(frozen=True)
class Chip:
    """What its data sheet says."""

    config: int  # Continuous, averaging over `period_s`.
    shunt_step: float  # Volts; amperes where the shunt is built in.
    bus_step_v: float
    bus_shift: int  # Low bits of the bus register that are flags.
    period_s: float
    relative: float  # k = 2, with 1 % for an external shunt.
    die: int | None  # Its identity; an INA219 has none.
    has_shunt: bool = False


CHIPS = {
    "ina219": Chip(0x3EEF, 10e-6, 4e-3, 3, 0.017, 0.03, None),
    "ina226": Chip(0x4527, 2.5e-6, 1.25e-3, 0, 0.035, 0.015, 0x2260),
    "ina260": Chip(0x6527, 1.25e-3, 1.25e-3, 0, 0.035, 0.01, 0x2270, has_shunt=True),
}


class InaI2c:
    """One chip, read as watts."""

    def __init__(self, bus: Bus, address: int, chip: str, shunt_ohm: float, name: str) -> None:
        """Set the chip to average. Raises OSError: it does not answer; ValueError: it is another chip."""
        self._bus, self._address, self._chip, self._shunt_ohm = bus, address, CHIPS[chip], shunt_ohm
        if self._chip.die is not None:
            identity = self._word(MAKER), self._word(DIE)
            if identity != (TEXAS_INSTRUMENTS, self._chip.die):
                raise ValueError(
                    f"the chip at 0x{address:02x} says 0x{identity[0]:04x} 0x{identity[1]:04x}: no {chip}"
                )
        bus.write_i2c_block_data(address, CONFIG, list(struct.pack(">H", self._chip.config)))
        volts, _ = self._values()
        step_a = self._chip.shunt_step if self._chip.has_shunt else self._chip.shunt_step / shunt_ohm
        self.about = About(
            name=name,
            quantity="power",
            scope="board_input",
            covers="what is wired behind its shunt"
            + ("" if self._chip.has_shunt else f" of {shunt_ohm * 1e3:g} mOhm"),
            leaves_out="what is wired past it; the supply's own loss",
            accuracy=Accuracy(self._chip.relative, volts * step_a),
            period_s=self._chip.period_s,
            sample_s=0.1,
        )

    def read(self) -> Reading:
        """See Sensor."""
        volts, amperes = self._values()
        return Reading(volts * amperes)

    def _values(self) -> tuple[float, float]:
        """Return volts and amperes."""
        volts = (self._word(BUS) >> self._chip.bus_shift) * self._chip.bus_step_v
        signed = struct.unpack(">h", struct.pack(">H", self._word(SHUNT)))[0] * self._chip.shunt_step
        return volts, signed if self._chip.has_shunt else signed / self._shunt_ohm

    def _word(self, register: int) -> int:
        data = self._bus.read_i2c_block_data(self._address, register, 2)
        if len(data) != 2:
            raise ValueError(f"register 0x{register:02x} answers with {len(data)} bytes")
        return data[0] << 8 | data[1]


def open_bus(number: int) -> Bus:
    """Return a bus. Raises ModuleNotFoundError: smbus2 is not installed; OSError."""
    import smbus2

    return cast(Bus, smbus2.SMBus(number))


def find(
    chip: str, bus: int, address: int, shunt_ohm: float, opened: Callable[[int], Bus] = open_bus
) -> InaI2c | Unavailable:
    """Return the chip, or why it cannot be read."""
    name = f"i2c:{chip}@{bus}-{address:04x}"
    try:
        return InaI2c(opened(bus), address, chip, shunt_ohm, name)
    except ModuleNotFoundError:
        return Unavailable(name, "smbus2 is not installed", "pip install 'sparsefleet[i2c]'")
    except FileNotFoundError:
        cure = "enable it (Raspberry Pi: dtparam=i2c_arm=on in config.txt)"
        return Unavailable(name, f"/dev/i2c-{bus} does not exist", cure)
    except PermissionError:
        return Unavailable(name, f"no permission to open /dev/i2c-{bus}", "add the user to the group i2c")
    except OSError as error:
        busy = error.errno == 16  # EBUSY: a kernel driver holds it.
        cure = (
            'the kernel reads it already: energy = "hwmon"'
            if busy
            else "check wiring and address (i2cdetect -y N)"
        )
        return Unavailable(name, f"it does not answer ({error})", cure)
    except ValueError as error:
        return Unavailable(name, str(error), "correct chip or address in [meter.i2c]")
