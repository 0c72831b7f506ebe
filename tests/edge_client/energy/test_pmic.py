"""The Pi 5's PMIC through the firmware's mailbox, whose protocol a fake driver holds to the letter."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from edge_client.energy import firmware
from edge_client.energy.firmware import Firmware
from edge_client.energy.pmic import Pmic, find, rails_w
from edge_client.energy.source import Unavailable
from tests.edge_client.energy.trees import PI_ANSWER, PI_RAILS_W


class Driver:
    """What /dev/vcio does with the buffer of GET_GENCMD_RESULT."""

    def __init__(self, answers: dict[str, str], error: int = 0) -> None:
        self.answers, self.error, self.asked = answers, error, 0

    def ioctl(self, descriptor: int, request: int, buffer: bytearray, mutate: bool) -> int:
        self.asked += 1
        assert request == 0xC0086400  # _IOWR(100, 0, char *) where a pointer has 8 bytes.
        assert mutate
        assert len(buffer) == 4124
        size, code, tag, value_size, zero, error = struct.unpack_from("<6I", buffer)
        assert (size, code, tag, value_size, zero, error) == (4124, 0, 0x30080, 4096, 0, 0)
        assert buffer[-4:] == bytes(4)
        command = bytes(buffer[24:-4]).split(b"\0", 1)[0].decode()
        answer = self.answers.get(command, 'error=1 error_msg="Command not registered"').encode()
        buffer[24 : 24 + len(answer) + 1] = answer + b"\0"
        struct.pack_into("<I", buffer, 20, self.error)
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    fake = Driver({"pmic_read_adc": PI_ANSWER, "get_throttled": "throttled=0x50005"})
    monkeypatch.setattr(firmware.fcntl, "ioctl", fake.ioctl)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").touch()
    return fake


def opened(root: Path) -> Firmware:
    found = Firmware.open(root)
    assert isinstance(found, Firmware)
    return found


def test_a_command_goes_through_the_mailbox(driver: Driver, tmp_path: Path) -> None:
    assert opened(tmp_path).ask("get_throttled") == "throttled=0x50005"


def test_a_command_that_the_firmware_does_not_know_is_no_answer(driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Command not registered"):
        opened(tmp_path).ask("make_coffee")
    driver.error = 5
    with pytest.raises(ValueError, match="error 5"):
        opened(tmp_path).ask("get_throttled")


def test_the_restricted_device_is_preferred(driver: Driver, tmp_path: Path) -> None:
    assert opened(tmp_path).path.name == "vcio"
    (tmp_path / "dev/vcio_gencmd").touch()
    assert opened(tmp_path).path.name == "vcio_gencmd"


def test_a_forbidden_device_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(firmware.os, "open", forbidden)
    found = find(tmp_path)
    assert isinstance(found, Unavailable)
    assert found.reason == f"{tmp_path}/dev/vcio_gencmd cannot be opened (Permission denied)"
    assert "group video" in found.cure


def test_without_the_device_the_reason_is_named(tmp_path: Path) -> None:
    found = find(tmp_path)
    assert isinstance(found, Unavailable)
    assert "dev/vcio exists" in found.reason


def test_the_boards_power_is_calibrated_from_the_rails(driver: Driver, tmp_path: Path) -> None:
    sensor = find(tmp_path)
    assert isinstance(sensor, Pmic)
    assert sensor.read().value == pytest.approx(1.1451 * PI_RAILS_W + 0.5879, rel=1e-5)
    assert driver.asked == 2  # One at the start, and one message for each sample.


def test_rails_are_paired_by_name_in_any_order() -> None:
    lines = PI_ANSWER.splitlines()
    random.Random(3).shuffle(lines)
    rails = rails_w("\n".join([*lines, "  NEW_RAIL_A current(30)=9.0A", "  NEW_RAIL_V volt(31)=9.0V"]))
    assert sum(rails.values()) == pytest.approx(PI_RAILS_W, rel=1e-5)
    assert rails["0V8_AON"] == pytest.approx(0.005433 * 0.79626300)  # Indices 16 and 19.


@pytest.mark.parametrize("missing", ["VDD_CORE_A", "HDMI_V"])
def test_a_sum_without_a_rail_is_no_sum(missing: str) -> None:
    answer = "\n".join(line for line in PI_ANSWER.splitlines() if missing not in line)
    with pytest.raises(ValueError, match=f"does not report {missing[:-2]}"):
        rails_w(answer)


def test_a_pi_4_has_a_mailbox_and_no_pmic(driver: Driver, tmp_path: Path) -> None:
    del driver.answers["pmic_read_adc"]
    found = find(tmp_path)
    assert isinstance(found, Unavailable)
    assert "Command not registered" in found.reason
    assert found.cure == "only a Raspberry Pi 5 and CM5 have this PMIC"
