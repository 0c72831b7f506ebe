"""What was asked for by name or nothing; "auto" takes the first that can be read, and says why."""

import logging
from pathlib import Path

import pytest

from device_profiles import load
from edge_client.energy.choose import choose
from protocol.errors import ConfigError


def rapl_tree(root: Path) -> Path:
    zone = root / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(text)
    return root


def test_auto_takes_rapl_where_it_can_be_read(tmp_path: Path) -> None:
    assert choose("auto", load("x86-64"), rapl_tree(tmp_path)).about.name == "rapl:package-0"


def test_auto_takes_the_model_otherwise_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose("auto", load("x86-64"), tmp_path).about.name == "model:cpu-time(x86-64)"
    assert "no intel-rapl zone" in caplog.text
    assert "no battery" in caplog.text


def test_without_sensor_and_published_watts_energy_stays_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose("auto", load("jetson-orin-nx"), tmp_path).about.scope == "none"
    assert "energy stays unknown" in caplog.text


def test_clients_that_share_a_machine_take_no_sensor_of_the_whole_board(tmp_path: Path) -> None:
    assert choose("auto-process", load("rpi5"), tmp_path).about.name == "model:cpu-time(rpi5)"


def test_a_forced_source_is_taken(tmp_path: Path) -> None:
    root = rapl_tree(tmp_path)
    names = {p: choose(p, load("rpi5"), root).about.name for p in ("rapl", "rapl-process", "model", "none")}
    assert names == {
        "rapl": "rapl:package-0",
        "rapl-process": "rapl:package-0*cpu-share",
        "model": "model:cpu-time(rpi5)",
        "none": "none",
    }


@pytest.mark.parametrize("preference", ["rapl", "rapl-process"])
def test_a_forced_source_that_is_absent_is_an_error_and_never_another_one(
    tmp_path: Path, preference: str
) -> None:
    with pytest.raises(ConfigError, match=r"RAPL is not available: no intel-rapl zone.*use energy = "):
        choose(preference, load("rpi5"), tmp_path)


def test_an_unknown_preference_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="choose one of auto, auto-process, ina3221, pmic, hwmon, rapl, battery, "
    ):
        choose("wattmeter", load("rpi5"), tmp_path)
