"""A phase has its duration, CPU time, energy and bytes; an unknown energy is None, never zero."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_profiles import load
from edge_client.energy.cpu_model import CpuModel
from edge_client.energy.meter import Meter, choose
from edge_client.energy.source import Accuracy, NoSource, Reading, Scope
from protocol.errors import ConfigError
from protocol.messages import Phase


class Scripted:
    """A source that returns what the test lists, one entry a read."""

    name = "scripted"
    scope: Scope = "board_input"
    accuracy = Accuracy(relative=0.1)
    poll_s: float | None = None

    def __init__(self, *readings: Reading | None) -> None:
        self._readings: Iterator[Reading | None] = iter(readings)

    def read(self) -> Reading | None:
        return next(self._readings)


class Clocks:
    def __init__(self) -> None:
        self.now_s, self.cpu_s = 1000.0, 50.0

    def meter(self, *readings: Reading | None) -> Meter:
        return Meter(Scripted(*readings), lambda: self.now_s, lambda: self.cpu_s)

    def work(self, duration_s: float, cpu_s: float) -> None:
        self.now_s += duration_s
        self.cpu_s += cpu_s


def test_a_phase_records_what_happened_within_it() -> None:
    clocks = Clocks()
    meter = clocks.meter(Reading(5.0), Reading(25.0))
    clocks.work(7.0, 7.0)  # Before the phase: nobody's.
    with meter.phase("train") as span:
        clocks.work(4.0, 12.0)
        span.received_bytes, span.sent_bytes = 30, 40
    expected = Phase("train", 4.0, 12.0, 20.0, 2.0, "scripted", received_bytes=30, sent_bytes=40)
    assert meter.take() == [expected]
    assert span.phase == expected


def test_time_and_energy_between_phases_belong_to_none() -> None:
    clocks = Clocks()
    meter = clocks.meter(Reading(0.0), Reading(1.0), Reading(100.0), Reading(102.0))
    with meter.phase("receive"):
        clocks.work(1.0, 0.0)
    clocks.work(50.0, 0.0)
    with meter.phase("upload"):
        clocks.work(2.0, 0.0)
    phases = meter.take()
    assert [(p.phase, p.duration_s, p.energy_j) for p in phases] == [
        ("receive", 1.0, 1.0),
        ("upload", 2.0, 2.0),
    ]
    assert meter.take() == []


@pytest.mark.parametrize(
    "readings", [(None, Reading(1.0)), (Reading(1.0), None), (Reading(1.0, gaps=0), Reading(2.0, gaps=1))]
)
def test_a_phase_with_a_failed_read_has_no_energy(readings: tuple[Reading | None, Reading | None]) -> None:
    meter = Clocks().meter(*readings)
    with meter.phase("train"):
        pass
    (phase,) = meter.take()
    assert (phase.energy_j, phase.uncertainty_j) == (None, None)
    assert phase.energy_source == "scripted"


def test_a_gap_before_a_phase_does_not_spoil_it() -> None:
    meter = Clocks().meter(Reading(1.0, gaps=3), Reading(2.0, gaps=3))
    with meter.phase("train"):
        pass
    assert meter.take()[0].energy_j == 1.0


def test_a_phase_that_raises_is_recorded_and_the_meter_goes_on() -> None:
    clocks = Clocks()
    meter = clocks.meter(Reading(0.0), Reading(3.0), Reading(3.0), Reading(4.0))
    with pytest.raises(OSError, match="gone"), meter.phase("upload"):
        raise OSError("gone")
    with meter.phase("upload"):
        pass
    assert [phase.energy_j for phase in meter.take()] == [3.0, 1.0]


def test_phases_do_not_nest() -> None:
    meter = Clocks().meter(Reading(0.0), Reading(0.0))
    nested = pytest.raises(RuntimeError, match="'encode' begins within phase 'train'")
    with meter.phase("train"), nested, meter.phase("encode"):
        pass
    assert [phase.phase for phase in meter.take()] == ["train"]


def test_without_a_source_time_is_measured_and_energy_unknown() -> None:
    clocks = Clocks()
    meter = Meter(NoSource(), lambda: clocks.now_s, lambda: clocks.cpu_s)
    with meter.phase("train"):
        clocks.work(2.0, 1.0)
    assert meter.take() == [Phase("train", 2.0, 1.0, None, None, "none")]


def test_a_source_that_wraps_is_polled_during_the_phase() -> None:
    polled = threading.Event()

    class Wrapping(Scripted):
        poll_s = 0.0

        def read(self) -> Reading | None:
            if threading.current_thread().name == "energy-poll":
                polled.set()
            return Reading(0.0)

    meter = Meter(Wrapping())
    with meter.phase("train"):
        assert polled.wait(10.0)


def test_the_real_clocks_fit_the_default_arguments() -> None:
    meter = Meter(CpuModel(load("unknown")))
    with meter.phase("train"):
        sum(range(1000))
    (phase,) = meter.take()
    assert phase.duration_s > 0
    assert phase.energy_j is not None
    assert phase.energy_j >= 0


# Choosing


def rapl_tree(root: Path) -> Path:
    zone = root / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(text)
    return root


def test_auto_takes_rapl_where_it_can_be_read(tmp_path: Path) -> None:
    assert choose("auto", load("x86-64"), rapl_tree(tmp_path)).name == "rapl:package-0"


def test_auto_takes_the_model_otherwise_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose("auto", load("rpi5"), tmp_path).name == "model:cpu-time(rpi5)"
    assert "no intel-rapl zone" in caplog.text


def test_a_forced_source_is_taken(tmp_path: Path) -> None:
    root = rapl_tree(tmp_path)
    names = {p: choose(p, load("rpi5"), root).name for p in ("rapl", "rapl-process", "model", "none")}
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
        ConfigError, match="choose one of auto, auto-process, rapl, rapl-process, model, none"
    ):
        choose("wattmeter", load("rpi5"), tmp_path)
