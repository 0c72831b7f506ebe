"""INA219, INA226 and INA260 against fake chips with the registers of their data sheets."""

from __future__ import annotations

import pytest

from edge_client.energy.ina_i2c import InaI2c, find
from edge_client.energy.source import Unavailable


class Chip:
    """Registers, high byte first."""

    def __init__(self, registers: dict[int, int], error: OSError | None = None) -> None:
        self.registers, self.error = registers, error

    def read_i2c_block_data(self, address: int, register: int, length: int) -> list[int]:
        if self.error is not None:
            raise self.error
        assert (address, length) == (0x40, 2)
        return list(self.registers[register].to_bytes(2, "big"))

    def write_i2c_block_data(self, address: int, register: int, data: list[int]) -> None:
        self.registers[register] = int.from_bytes(bytes(data), "big")


CHIPS = {
    # 5.12 V are 1280 steps of 4 mV above three flag bits (the lowest but one: a conversion is ready);
    # 0.5 A over 0.1 Ohm are 50 mV, 5000 steps of 10 uV.
    "ina219": ({0: 0x399F, 1: 5000, 2: 1280 << 3 | 2}, 0.1, 5.12 * 0.5, 5.12 * 1e-4),
    # 5.1 V are 4080 steps of 1.25 mV; 0.4 A over 0.01 Ohm are 4 mV, 1600 steps of 2.5 uV.
    "ina226": ({0: 0x4127, 1: 1600, 2: 4080, 0xFE: 0x5449, 0xFF: 0x2260}, 0.01, 5.1 * 0.4, 5.1 * 2.5e-4),
    # 0.4 A are 320 steps of 1.25 mA.
    "ina260": ({0: 0x6127, 1: 320, 2: 4080, 0xFE: 0x5449, 0xFF: 0x2270}, 1.0, 5.1 * 0.4, 5.1 * 1.25e-3),
}


@pytest.mark.parametrize("chip", CHIPS)
def test_watts_follow_from_the_registers(chip: str) -> None:
    registers, shunt_ohm, watts, step_w = CHIPS[chip]
    fake = Chip(dict(registers))
    sensor = find(chip, 1, 0x40, shunt_ohm, lambda number: fake)
    assert isinstance(sensor, InaI2c), sensor
    assert sensor.read().value == pytest.approx(watts)
    assert sensor.about.accuracy.resolution == pytest.approx(step_w)
    assert sensor.about.name == f"i2c:{chip}@1-0040"
    assert fake.registers[0] != registers[0]  # Set to average.


def test_a_current_may_be_negative() -> None:
    fake = Chip({**CHIPS["ina219"][0], 1: 0x10000 - 5000})
    sensor = find("ina219", 1, 0x40, 0.1, lambda number: fake)
    assert isinstance(sensor, InaI2c)
    assert sensor.read().value == pytest.approx(-2.56)


@pytest.mark.parametrize(
    ("error", "reason", "cure"),
    [
        (FileNotFoundError(2, "x"), "/dev/i2c-1 does not exist", "dtparam=i2c_arm=on"),
        (PermissionError(13, "x"), "no permission to open /dev/i2c-1", "group i2c"),
        (OSError(16, "Device or resource busy"), "busy", 'energy = "hwmon"'),
        (OSError(121, "Remote I/O error"), "Remote I/O error", "i2cdetect"),
        (ModuleNotFoundError("smbus2"), "smbus2 is not installed", r"sparsefleet[i2c]"),
    ],
)
def test_a_bus_that_cannot_be_read_is_unavailable_by_name(error: Exception, reason: str, cure: str) -> None:
    def opened(number: int) -> Chip:
        raise error

    found = find("ina219", 1, 0x40, 0.1, opened)
    assert isinstance(found, Unavailable)
    assert reason in found.reason
    assert cure in found.cure


def test_another_chip_is_refused_before_it_is_written_to() -> None:
    fake = Chip({**CHIPS["ina226"][0], 0xFF: 0x2270})
    found = find("ina226", 1, 0x40, 0.01, lambda number: fake)
    assert isinstance(found, Unavailable)
    assert "says 0x5449 0x2270: no ina226" in found.reason
    assert fake.registers[0] == 0x4127


def test_a_chip_that_is_pulled_out_raises_and_comes_back() -> None:
    fake = Chip(dict(CHIPS["ina226"][0]))
    sensor = find("ina226", 1, 0x40, 0.01, lambda number: fake)
    assert isinstance(sensor, InaI2c)
    fake.error = OSError(121, "Remote I/O error")
    with pytest.raises(OSError, match="Remote"):
        sensor.read()
    fake.error = None
    assert sensor.read().value == pytest.approx(2.04)
