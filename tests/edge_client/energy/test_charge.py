"""How full a battery is, and how the board is now: what a waiting client tells of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.energy.battery import Charge
from edge_client.energy.conditions import Seen, watch
from tests.edge_client.energy.trees import write

SUPPLIES = "sys/class/power_supply"


def supply(root: Path, name: str, percent: int | str, **more: str) -> None:
    files: dict[str, str | int | bytes] = {"type": "Battery", "capacity": percent, **more}
    write(root, {f"{SUPPLIES}/{name}/{key}": value for key, value in files.items()})


def test_the_emptiest_battery_counts_and_a_mouses_does_not(tmp_path):
    supply(tmp_path, "BAT0", 80)
    supply(tmp_path, "BAT1", 35)
    supply(tmp_path, "hid-mouse", 5, scope="Device")
    write(tmp_path, {f"{SUPPLIES}/AC/type": "Mains"})
    assert Charge(tmp_path).read_percent() == 35.0


@pytest.mark.parametrize("content", ["", "full", "-1", "101"])
def test_a_battery_that_says_nothing_plausible_is_unknown(content, tmp_path):
    supply(tmp_path, "BAT0", content)
    assert Charge(tmp_path).read_percent() is None


def test_no_battery_is_unknown(tmp_path):
    assert Charge(tmp_path).read_percent() is None


def test_the_board_of_now_is_seen_without_forgetting_the_phase(tmp_path):
    zone = "sys/class/thermal/thermal_zone0"
    alarm = "sys/class/hwmon/hwmon0"
    write(tmp_path, {f"{zone}/type": "cpu-thermal", f"{zone}/temp": 80_000})
    write(tmp_path, {f"{alarm}/name": "rpi_volt", f"{alarm}/in0_lcrit_alarm": 1})
    supply(tmp_path, "BAT0", 35)
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    write(tmp_path, {f"{zone}/temp": 50_000, f"{alarm}/in0_lcrit_alarm": 0})
    assert conditions.now(1.0) == Seen(50.0, None, (), 35.0)
    seen = conditions.end(2.0)
    assert (seen.temperature_c, seen.throttling, seen.battery_percent) == (80.0, ("under-voltage",), 35.0)
