"""A sensor that says the same while the load changes is told from one that is only coarse or quiet."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from edge_client.energy.meter import Meter
from edge_client.energy.source import About, Accuracy, Reading
from edge_client.energy.stuck import Stuck

POWER = About("ina3221:VDD_IN", "power", "module_input", "", "", Accuracy(0.03, 0.04), sample_s=0.1)
COUNTER = About("rapl:package-0", "energy", "soc_package", "", "", Accuracy(0.03, 1e-6), sample_s=0.1)


def said(about: About, seconds: float, cores: float, quiet_s: float = 0.0, value: float = 5.0) -> str:
    """Equal readings at 10 Hz: `quiet_s` without load, then `seconds` at so many cores; what the last one said."""
    stuck, text, cpu_s = Stuck(about), "", 0.0
    for n in range(round(10 * (quiet_s + seconds)) + 1):
        cpu_s += 0.1 * cores if n > 10 * quiet_s else 0.0
        text = stuck.add(n / 10, value, cpu_s)
    return text


def test_equal_readings_while_the_load_rises_are_no_readings():
    assert said(POWER, 3.0, 4.0, quiet_s=3.0).startswith(
        "stuck: 61 equal readings in 6 s, while the client took 0.0 to 4.0"
    )


@pytest.mark.parametrize(
    ("what", "seconds", "cores", "quiet_s"),
    [
        ("a constant load draws a constant power", 60.0, 4.0, 0.0),
        ("an idle board is quiet", 60.0, 0.0, 0.0),
        ("too short to tell", 2.0, 4.0, 2.0),
        ("the load hardly changes", 30.0, 0.3, 30.0),
    ],
)
def test_equal_readings_alone_say_nothing(what, seconds, cores, quiet_s):
    assert said(POWER, seconds, cores, quiet_s) == "", what


def test_a_reading_that_differs_begins_anew():
    stuck = Stuck(POWER)
    for n in range(100):
        assert stuck.add(n / 10, 5.0 + 0.04 * (n // 40), 0.4 * n if n > 20 else 0.0) == ""


def test_a_slow_sensor_repeats_itself():
    assert said(replace(POWER, period_s=10.0), 10.0, 4.0, quiet_s=10.0) == ""
    assert said(replace(POWER, period_s=10.0), 20.0, 4.0, quiet_s=20.0) != ""


def test_a_counter_that_stands_still_under_load_is_stuck():
    assert said(COUNTER, 6.0, 1.0) != ""
    assert said(COUNTER, 60.0, 0.1) == ""  # Nothing to count.
    plug = replace(COUNTER, accuracy=Accuracy(0.03, resolution=36.0))  # 0.01 kWh.
    assert said(plug, 60.0, 1.0) == ""
    assert said(plug, 160.0, 1.0) != ""


def test_a_model_is_no_sensor():
    assert said(replace(COUNTER, scope="model"), 60.0, 4.0) == ""


def test_the_phase_is_marked_and_the_log_says_it_once(caplog):
    caplog.set_level(logging.WARNING)
    clock = {"now_s": 0.0, "cpu_s": 0.0}
    value = {"w": 5.0}

    class Hanging:
        about = POWER

        def read(self) -> Reading:
            return Reading(value["w"])

    meter = Meter(Hanging(), lambda: clock["now_s"], lambda: clock["cpu_s"])

    def phase(name: str, seconds: float, cores: float) -> None:
        with meter.phase(name, in_background=False):
            for _ in range(round(10 * seconds)):
                clock["now_s"] += 0.1
                clock["cpu_s"] += 0.1 * cores
                meter.sample()

    phase("idle", 4.0, 0.0)
    phase("train", 4.0, 3.0)
    phase("encode", 2.0, 1.0)
    value["w"] = 7.0
    phase("upload", 2.0, 0.0)
    warnings = {one.phase: one.energy_warning for one in meter.take()}
    assert warnings["idle"] == warnings["upload"] == ""
    assert warnings["train"].startswith("stuck: ")
    assert warnings["encode"].startswith("stuck: ")
    assert len(caplog.records) == 2
    assert "it moves again" in caplog.records[1].getMessage()
