"""On each board's tree: the right source is chosen, in the right units, with the right scope."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device_profiles import PowerSource, detect
from edge_client.energy import ina3221
from edge_client.energy.choose import choose, survey
from edge_client.energy.conditions import watch
from edge_client.energy.meter import Meter
from edge_client.energy.power_mode import power_mode
from edge_client.energy.source import Unavailable
from tests.edge_client.energy import trees

PI5_W = 1.1451 * trees.PI_RAILS_W + 0.5879


def pi(model: str, *compatible: str) -> Callable[[Path], Path]:
    return lambda root: trees.pi(root, model, *compatible)


# Tree, profile, source, scope, watts (None: a counter), resolution in watts, time constant.
BOARDS = {
    "pi-zero2w": (
        pi("Raspberry Pi Zero 2 W Rev 1.0", "raspberrypi,model-zero-2-w", "brcm,bcm2837"),
        ("rpi-zero2w", "load-model:rpi-zero2w", "model", None, 0.0, 0.0),
    ),
    "pi-3b+": (
        pi("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberrypi,3-model-b-plus"),
        ("rpi3bplus", "load-model:rpi3bplus", "model", None, 0.0, 0.0),
    ),
    "pi-4b": (
        pi("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b"),
        ("rpi4b", "load-model:rpi4b", "model", None, 0.0, 0.0),
    ),
    "pi-cm4": (
        pi("Raspberry Pi Compute Module 4 Rev 1.0", "raspberrypi,4-compute-module"),
        ("rpi-cm4", "load-model:rpi-cm4", "model", None, 0.0, 0.0),
    ),
    "pi-5": (trees.pi5, ("rpi5", "pmic:calibrated", "board_input", PI5_W, 0.0, 0.0)),
    "pi-cm5": (
        lambda root: trees.pi5(root, "Raspberry Pi Compute Module 5 Rev 1.0", "raspberrypi,5-compute-module"),
        ("rpi-cm5", "pmic:calibrated", "board_input", PI5_W, 0.0, 0.0),
    ),
    # 5.072 V * 1.312 A; a step is 8 mA at 5.072 V.
    "orin-nano": (
        trees.orin_nano,
        ("jetson-orin-nano", "ina3221:VDD_IN", "module_input", 6.654464, 0.0406, 0.422),
    ),
    "orin-nx": (trees.orin_nx, ("jetson-orin-nx", "ina3221:VDD_IN", "module_input", 6.654464, 0.0406, 0.422)),
    # 19.904 * 0.26 + 19.904 * 0.16 + 5.056 * 1.08, without VDDQ; steps of 0.398, 0.398 and 0.101 W.
    "agx-orin": (
        trees.agx_orin,
        (
            "jetson-agx-orin",
            "ina3221:VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0",
            "rails_sum",
            13.82016,
            0.572,
            0.4,
        ),
    ),
    # 19 * 0.1 + 19 * 0.2 + 19 * 0.15 + 19 * 0.01 + 19 * 0.04 + 5 * 0.4
    "agx-xavier": (
        trees.agx_xavier,
        ("jetson-agx-xavier", "ina3221:GPU+CPU+SOC+CV+VDDRQ+SYS5V", "rails_sum", 11.5, 0.342, 0.4),
    ),
    "xavier-nx": (
        trees.xavier_nx,
        ("jetson-xavier-nx", "ina3221:VDD_IN", "module_input", 4.7616, 0.0397, 0.4),
    ),
    "nano": (trees.nano, ("jetson-nano", "ina3221:POM_5V_IN", "board_input", 2.0288, 0.0406, 0.422)),
    "nano-2gb": (trees.nano_2gb, ("jetson-nano", "load-model:jetson-nano", "model", None, 0.0, 0.0)),
    "tx2": (trees.tx2, ("jetson-tx2", "ina3221:VDD_IN", "module_input", 3.8144, 0.1526, 0.422)),
    "thor": (trees.thor, ("unknown", "hwmon:ina238@VIN", "board_input", 22.9425, 0.0203, 0.0)),
    "laptop": (trees.laptop, ("x86-64", "rapl:package-0", "soc_package", None, 0.0, 0.0)),
    "laptop-in-a-container": (
        lambda root: trees.laptop(root, rapl=False),
        ("x86-64", "battery:BAT0", "board_input", 9.40296, 0.1, 0.0),
    ),
    "pi-4b-with-an-ina226": (
        lambda root: trees.monitor(
            trees.pi(root, "Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b"),
            *(4, "ina226", 5118, 512, 2625000),
            shunt_resistor=10000,
            update_interval=35,
        ),
        ("rpi4b", "hwmon:ina226@hwmon4", "board_input", 2.620416, 0.00516, 0.0),
    ),
}


@pytest.mark.parametrize("name", BOARDS)
def test_the_right_source_is_chosen_with_its_units_and_scope(name: str, tmp_path: Path) -> None:
    build, (profile, source, scope, watts, resolution_w, tau_s) = BOARDS[name]
    build(tmp_path)
    found = detect(tmp_path)
    assert found.name == profile
    sensor = choose("auto", found, tmp_path)
    about = sensor.about
    assert (about.name, about.scope, about.quantity) == (
        source,
        scope,
        "energy" if watts is None else "power",
    )
    assert about.covers
    assert about.leaves_out
    assert about.tau_s == pytest.approx(tau_s)
    if watts is not None:
        assert sensor.read().value == pytest.approx(watts, rel=1e-4)
        assert about.accuracy.resolution == pytest.approx(resolution_w, rel=0.01)


def renumbered(root: Path) -> None:
    """Give hwmon, iio and thermal folders other numbers, as another boot does."""
    numbered = [p for p in sorted(root.rglob("*"), reverse=True) if p.is_dir() and re.search(r"\d+$", p.name)]
    for path in numbered:
        if path.name.startswith(("hwmon", "iio:device", "thermal_zone", "cooling_device")):
            number = int(re.search(r"\d+$", path.name)[0])  # type: ignore[index]
            path.rename(path.with_name(f"{path.name.rstrip('0123456789')}{31 - number}"))


@pytest.mark.parametrize("name", [name for name in BOARDS if not name.startswith("pi-4b-with")])
def test_numbers_that_move_between_boots_change_nothing(name: str, tmp_path: Path) -> None:
    build, (profile, source, _, watts, _, _) = BOARDS[name]
    build(tmp_path)
    before = watch(tmp_path).thermal.read_c()
    renumbered(tmp_path)
    sensor = choose("auto", detect(tmp_path), tmp_path)
    assert (detect(tmp_path).name, sensor.about.name) == (profile, source)
    if watts is not None:
        assert sensor.read().value == pytest.approx(watts, rel=1e-4)
    assert watch(tmp_path).thermal.read_c() == before


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Make every file whose path ends so fail with an error number. Tests may run as root, whom no mode stops."""
    failures: dict[str, int] = {}
    opened = os.open

    def fail(path: str | Path, *arguments: int, **named: int) -> int:
        for end, number in failures.items():
            if str(path).endswith(end):
                raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr("edge_client.energy.sysfs.os.open", fail)
    return failures.__setitem__


def reason(root: Path, kind: str) -> Unavailable:
    found = dict(survey(detect(root), root))[kind]
    assert isinstance(found, Unavailable), found
    return found


def test_a_forbidden_rail_names_the_file_and_the_next_source_follows(
    tmp_path: Path, failing: Callable[[str, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    trees.orin_nano(tmp_path)
    failing("curr1_input", errno.EACCES)
    assert reason(tmp_path, "ina3221").reason.endswith("hwmon1/curr1_input")
    assert "no permission to read" in reason(tmp_path, "ina3221").reason
    caplog.set_level("INFO")
    assert choose("auto", detect(tmp_path), tmp_path).about.name == "load-model:jetson-orin-nano"
    assert "INA3221 is not available: no permission to read" in caplog.text


@pytest.mark.parametrize("number", [errno.ENODATA, errno.EIO, errno.EAGAIN])
def test_a_rail_that_answers_with_an_error_is_unavailable_by_name(
    tmp_path: Path, failing: Callable[[str, int], None], number: int
) -> None:
    trees.agx_orin(tmp_path)
    failing("1-0040/hwmon/hwmon2/in2_input", number)
    assert os.strerror(number) in reason(tmp_path, "ina3221").reason
    assert choose("auto", detect(tmp_path), tmp_path).about.scope == "none"


def test_channels_that_are_not_connected_are_never_read(
    tmp_path: Path, failing: Callable[[str, int], None]
) -> None:
    trees.agx_orin(tmp_path)
    failing("1-0041/hwmon/hwmon4/in1_input", errno.ENODATA)
    assert choose("auto", detect(tmp_path), tmp_path).read().value == pytest.approx(13.82016)


@pytest.mark.parametrize("garbage", ["", "abc", "99999999", "0x10", "12 34"])
def test_garbage_in_a_rail_is_refused(tmp_path: Path, garbage: str) -> None:
    trees.orin_nano(tmp_path)
    sensor = choose("ina3221", detect(tmp_path), tmp_path)
    path = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    path.write_text(garbage)
    with pytest.raises(ValueError):
        sensor.read()
    path.write_text("1320 ma\n")  # JetPack 4's habit.
    assert sensor.read().value == pytest.approx(5.072 * 1.32)


def test_a_missing_rail_is_named_and_never_replaced_by_its_children(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label").write_text("NC\n")
    assert reason(tmp_path, "ina3221").reason == "no rail VDD_IN among VDD_CPU_GPU_CV, VDD_SOC"


def test_on_an_unknown_board_only_a_known_total_is_taken(tmp_path: Path) -> None:
    trees.thor(tmp_path)
    assert reason(tmp_path, "ina3221").reason.startswith("no rail VDD_IN|POM_5V_IN|5V_IN|VIN among")


def test_a_tree_that_was_recorded_without_links_is_read_too(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    chip = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    shutil.copytree(chip, tmp_path / "sys/class/hwmon/hwmon1")  # Both, and no rail counts twice.
    assert choose("auto", detect(tmp_path), tmp_path).read().value == pytest.approx(6.654464)
    shutil.rmtree(tmp_path / "sys/bus")
    assert choose("auto", detect(tmp_path), tmp_path).read().value == pytest.approx(6.654464)


def test_the_filter_follows_from_the_chips_own_settings(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    (folder / "samples").write_text("1\n")
    (folder / "update_interval").write_text("7\n")
    assert choose("ina3221", detect(tmp_path), tmp_path).about.tau_s == 0.0
    trees.nano(tmp_path / "nano")
    mode = tmp_path / "nano/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/running_mode"
    mode.write_text("0\n")  # Triggered: one conversion for each read.
    assert choose("ina3221", detect(tmp_path / "nano"), tmp_path / "nano").about.tau_s == 0.0


def test_negative_currents_next_to_zero_are_kept(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input").write_text("-8\n")
    assert choose("ina3221", detect(tmp_path), tmp_path).read().value == pytest.approx(-0.040576)


def test_several_monitors_are_never_added_up(tmp_path: Path) -> None:
    trees.monitor(tmp_path, 4, "ina226", 5118, 512, 2625000)
    trees.monitor(tmp_path, 5, "ina219", 4228, -40, 176000)  # The sign is lost in the power.
    assert "several monitors, ina226@hwmon4, ina219@hwmon5" in reason(tmp_path, "hwmon").reason
    from edge_client.energy.settings import MeterSettings

    chosen = choose("hwmon", detect(tmp_path), tmp_path, MeterSettings(monitor="ina219@hwmon5"))
    assert chosen.read().value == pytest.approx(-0.16912)


def test_an_ina228_counts_for_itself_and_a_reset_is_a_gap(tmp_path: Path) -> None:
    trees.monitor(tmp_path, 6, "ina228", 5110, 512, 2616320, energy1_input=918273645)
    sensor = choose("hwmon", detect(tmp_path), tmp_path)
    assert (sensor.about.quantity, sensor.about.unit) == ("energy", "J")
    energy = tmp_path / "sys/class/hwmon/hwmon6/energy1_input"
    energy.write_text("920273645\n")
    assert (sensor.read().value, sensor.read().gaps) == (pytest.approx(2.0), 0)
    energy.write_text("100\n")
    assert (sensor.read().value, sensor.read().gaps) == (pytest.approx(2.0), 1)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_says_nothing_while_it_charges(tmp_path: Path, status: str) -> None:
    trees.laptop(tmp_path, rapl=False, status=status)
    assert reason(tmp_path, "battery").reason == f"the battery is '{status}', not discharging"
    assert choose("auto", detect(tmp_path), tmp_path).about.name == "model:cpu-time(x86-64)"


# Conditions


def test_a_jetsons_conditions(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    seen = conditions.end(1.0)
    # The junction's zone, not the one that is switched off; the fan is not throttling; oc3's 2 are old.
    assert (seen.temperature_c, seen.clock_mhz, seen.throttling) == (52.031, None, ())
    assert power_mode(tmp_path) == "1 25W"
    conditions.begin(2.0)
    (tmp_path / "sys/class/thermal/cooling_device10/cur_state").write_text("1\n")
    (tmp_path / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("5\n")
    assert conditions.end(3.0).throttling == ("over-current", "throttled")


def test_a_mode_that_nobody_has_set_is_no_mode(tmp_path: Path) -> None:
    assert power_mode(tmp_path) == ""
    trees.write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007"})
    assert power_mode(tmp_path) == "7"


def test_the_firmwares_word_is_latched_over_a_phase(tmp_path: Path) -> None:
    trees.pi5(tmp_path)
    word = tmp_path / "dev/vcio_gencmd/get_throttled"
    word.write_text("throttled=0xe0000")  # What stuck before this phase is not its.
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    assert conditions.end(1.0).throttling == ()
    conditions.begin(1.0)
    word.write_text("throttled=0xe0004")
    conditions.sample(2.5)
    word.write_text("throttled=0x10000")  # The kernel has cleared the others; under-voltage came and went.
    assert conditions.end(3.0).throttling == ("throttled", "under-voltage")


@pytest.mark.parametrize("place", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_the_kernels_copy_of_the_word_is_read_where_the_mailbox_is_not(tmp_path: Path, place: str) -> None:
    trees.write(tmp_path, {f"sys/devices/platform/{place}/get_throttled": "50005"})
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    assert conditions.end(1.0).throttling == ("throttled", "under-voltage")


def test_an_under_voltage_alarm_is_seen(tmp_path: Path) -> None:
    trees.pi(tmp_path, "Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b")
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    (tmp_path / "sys/class/hwmon/hwmon3/in0_lcrit_alarm").write_text("1\n")
    seen = conditions.end(1.0)
    assert (seen.temperature_c, seen.clock_mhz, seen.throttling) == (52.35, 1500.0, ("under-voltage",))


def test_the_clock_is_the_mean_over_time_spent_at_each(tmp_path: Path) -> None:
    trees.pi(tmp_path, "Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b")
    state = tmp_path / "sys/devices/system/cpu/cpufreq/policy0/stats/time_in_state"
    trees.write(tmp_path, {str(state.relative_to(tmp_path)): "600000 1000\n1500000 500"})
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    state.write_text("600000 1100\n1500000 800\n")
    assert conditions.end(4.0).clock_mhz == pytest.approx(1275.0)  # (100 * 600 + 300 * 1500) / 400


def test_a_zone_that_answers_with_an_error_or_nonsense_does_not_count(
    tmp_path: Path, failing: Callable[[str, int], None]
) -> None:
    thermal = "sys/class/thermal/thermal_zone"
    trees.write(tmp_path, {f"{thermal}0/type": "CPU-therm", f"{thermal}0/temp": 41500})
    trees.write(tmp_path, {f"{thermal}1/type": "GPU-therm", f"{thermal}1/temp": 30000})
    trees.write(tmp_path, {f"{thermal}2/type": "PMIC-Die", f"{thermal}2/temp": 100000})
    trees.write(tmp_path, {f"{thermal}3/type": "x", f"{thermal}3/temp": "nonsense"})
    failing("thermal_zone1/temp", errno.EAGAIN)
    assert watch(tmp_path).thermal.read_c() == 41.5


def test_what_was_counted_between_two_phases_is_not_the_second_ones(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    conditions = watch(tmp_path)
    conditions.begin(0.0)
    conditions.end(1.0)
    (tmp_path / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("9\n")
    conditions.begin(2.0)
    assert conditions.end(3.0).throttling == ()


# Pulled out


def test_a_sensor_that_is_pulled_out_is_a_gap_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.orin_nano(tmp_path)
    sensor = choose("ina3221", detect(tmp_path), tmp_path)
    sensor.read()
    read = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_nlink == 0:  # So the kernel answers once the device is gone.
            raise OSError(errno.ENODEV, "No such device")
        return read(descriptor, length, offset)

    monkeypatch.setattr("edge_client.energy.sysfs.os.pread", pread)
    files = [
        tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1" / name
        for name in ("in1_input", "curr1_input")
    ]
    for path in files:
        path.unlink()
    with pytest.raises(OSError, match="No such device"):
        sensor.read()
    with pytest.raises(FileNotFoundError):
        sensor.read()
    for path, value in zip(files, (5000, 1000), strict=True):  # Back, it is another file of the same name.
        path.write_text(f"{value}\n")
    with pytest.raises(OSError, match="No such device"):
        sensor.read()  # The current's descriptor is still the old one.
    assert sensor.read().value == pytest.approx(5.0)


@pytest.mark.parametrize("content", [None, "garbage", ""])
def test_a_training_goes_on_without_its_sensor(tmp_path: Path, content: str | None) -> None:
    trees.orin_nano(tmp_path)
    meter = Meter(choose("ina3221", detect(tmp_path), tmp_path), conditions=watch(tmp_path))
    with meter.phase("train") as span:
        time.sleep(0.05)
        for path in (tmp_path / "sys").rglob("curr1_input"):
            path.unlink() if content is None else path.write_text(content)
        shutil.rmtree(tmp_path / "sys/class")  # Conditions go too.
        meter.source._rails[0].amperes.close()  # type: ignore[attr-defined]  # As its open descriptor would fail.
        time.sleep(0.25)
        span.sent_bytes = 7
    (phase,) = meter.take()
    assert (phase.energy_j, phase.sent_bytes) == (None, 7)
    assert phase.coverage is not None
    assert phase.coverage < 0.9


@pytest.mark.parametrize(
    ("tree", "rails", "kept", "left_out"),
    [
        (trees.orin_nano, ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), "VDD_IN", "VDD_CPU_GPU_CV+VDD_SOC"),
        (
            trees.agx_orin,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),
            "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0",
            "VDDQ_VDD2_1V8AO",
        ),
    ],
)
def test_a_child_rail_is_never_added_to_its_parent(
    tree: Callable[[Path], object],
    rails: tuple[str, ...],
    kept: str,
    left_out: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree(tmp_path)
    sensor = ina3221.find(tmp_path, PowerSource("ina3221", rails=rails))
    assert not isinstance(sensor, Unavailable)
    assert sensor.about.name == f"ina3221:{kept}"
    (record,) = caplog.records
    assert f"rails={left_out} of={kept}" in record.getMessage()
    alone = ina3221.find(tmp_path, PowerSource("ina3221", rails=tuple(kept.split("+"))))
    assert not isinstance(alone, Unavailable)
    assert sensor.read() == alone.read()
    assert len(caplog.records) == 1  # Rails that do not contain each other are no reason for a warning.
