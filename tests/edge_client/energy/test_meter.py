"""A phase has its duration, CPU time, energy and bytes; an unknown energy is None, never zero."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_profiles import load
from edge_client.energy import meter as meter_module
from edge_client.energy import rapl
from edge_client.energy.cpu_model import CpuModel
from edge_client.energy.meter import Meter, boot_time_s
from edge_client.energy.source import About, Accuracy, NoSource, Quantity, Reading
from tests.edge_client.energy import trees


class Scripted:
    """A source that returns what the test lists, one entry a read; None is a failed read."""

    def __init__(self, *values: Reading | float | None, quantity: Quantity = "energy") -> None:
        self.about = About("scripted", quantity, "board_input", "", "", Accuracy(relative=0.1))
        self._values: Iterator[Reading | float | None] = iter(values)

    def read(self) -> Reading:
        value = next(self._values)
        if value is None:
            raise OSError("unplugged")
        return value if isinstance(value, Reading) else Reading(value)


class Clocks:
    def __init__(self) -> None:
        self.now_s, self.cpu_s = 1000.0, 50.0

    def meter(self, *values: Reading | float | None, quantity: Quantity = "energy") -> Meter:
        return Meter(Scripted(*values, quantity=quantity), lambda: self.now_s, lambda: self.cpu_s)

    def work(self, duration_s: float, cpu_s: float = 0.0) -> None:
        self.now_s += duration_s
        self.cpu_s += cpu_s


# Counters


def test_a_phase_records_what_happened_within_it() -> None:
    clocks = Clocks()
    meter = clocks.meter(5.0, 25.0)
    clocks.work(7.0, 7.0)  # Before the phase: nobody's.
    with meter.phase("train") as span:
        clocks.work(4.0, 12.0)
        span.received_bytes, span.sent_bytes = 30, 40
    (phase,) = meter.take()
    assert (phase.phase, phase.duration_s, phase.cpu_s) == ("train", 4.0, 12.0)
    assert (phase.energy_j, phase.uncertainty_j, phase.energy_raw_j) == (20.0, 2.0, 20.0)
    assert (phase.energy_source, phase.energy_scope, phase.coverage) == ("scripted", "board_input", 1.0)
    assert (phase.received_bytes, phase.sent_bytes, phase.pooled) == (30, 40, "")
    assert phase.energy_net_j is None  # Nobody has measured the idle board.


def test_time_and_energy_between_phases_belong_to_none() -> None:
    clocks = Clocks()
    meter = clocks.meter(0.0, 1.0, 100.0, 102.0)
    with meter.phase("receive"):
        clocks.work(1.0)
    clocks.work(50.0)
    with meter.phase("upload"):
        clocks.work(2.0)
    phases = meter.take()
    assert [(p.phase, p.duration_s, p.energy_j) for p in phases] == [
        ("receive", 1.0, 1.0),
        ("upload", 2.0, 2.0),
    ]
    assert meter.take() == []


@pytest.mark.parametrize("values", [(None, 1.0), (1.0, None), (Reading(1.0, gaps=0), Reading(2.0, gaps=1))])
def test_a_phase_with_a_failed_read_has_no_energy(values: tuple[Reading | float | None, ...]) -> None:
    clocks = Clocks()
    meter = clocks.meter(*values)
    with meter.phase("train"):
        clocks.work(1.0)
    (phase,) = meter.take()
    assert (phase.energy_j, phase.uncertainty_j, phase.coverage) == (None, None, 0.0)
    assert phase.energy_source == "scripted"


def test_a_gap_before_a_phase_does_not_spoil_it() -> None:
    clocks = Clocks()
    meter = clocks.meter(Reading(1.0, gaps=3), Reading(2.0, gaps=3))
    with meter.phase("train"):
        clocks.work(1.0)
    assert meter.take()[0].energy_j == 1.0


def test_a_source_that_fails_is_named_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    meter = Clocks().meter(None, None, None, 1.0)
    for _ in range(2):
        with meter.phase("train"):
            pass
    assert [record.getMessage() for record in caplog.records] == [
        "energy is not read now source=scripted reason=unplugged",
        "energy is read again source=scripted",
    ]


def test_a_phase_that_raises_is_recorded_and_the_meter_goes_on() -> None:
    clocks = Clocks()
    meter = clocks.meter(0.0, 3.0, 3.0, 4.0)

    def fail() -> None:
        with meter.phase("upload"):
            clocks.work(1.0)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    with meter.phase("upload"):
        clocks.work(1.0)
    assert [phase.energy_j for phase in meter.take()] == [3.0, 1.0]


def test_phases_do_not_nest() -> None:
    meter = Clocks().meter(0.0, 0.0)
    nested = pytest.raises(RuntimeError, match="'encode' begins within phase 'train'")
    with meter.phase("train"), nested, meter.phase("encode"):
        pass
    assert [phase.phase for phase in meter.take()] == ["train"]


def test_without_a_source_time_is_measured_and_energy_unknown(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    meter = Meter(NoSource(), lambda: clocks.now_s, lambda: clocks.cpu_s)
    with meter.phase("train"):
        clocks.work(2.0, 1.0)
    (phase,) = meter.take()
    assert (phase.duration_s, phase.cpu_s, phase.energy_j, phase.coverage) == (2.0, 1.0, None, None)
    assert caplog.records == []


def test_a_phase_may_learn_only_at_its_end_what_it_was() -> None:
    meter = Clocks().meter(0.0, 0.0)
    with meter.phase("train") as span:
        span.name = "prune"
    assert meter.take()[0].phase == "prune"


# Power


def test_watts_are_integrated() -> None:
    clocks = Clocks()
    # The reading at the beginning may still be of what was before, so the first one inside counts back.
    meter = clocks.meter(1.0, 4.0, 6.0, 6.0, quantity="power")
    with meter.phase("train"):
        for _ in range(2):
            clocks.work(1.0)
            meter.sample()
        clocks.work(1.0)
    (phase,) = meter.take()
    assert phase.energy_j == pytest.approx(4.0 + 5.0 + 6.0)
    assert (phase.power_peak_w, phase.coverage) == (6.0, 1.0)


def test_a_failed_read_is_bridged_and_a_long_silence_is_not() -> None:
    clocks = Clocks()
    meter = clocks.meter(4.0, 4.0, None, None, 4.0, 4.0, quantity="power")
    with meter.phase("train"):
        for _ in range(4):
            clocks.work(1.0)
            meter.sample()
    assert meter.take()[0].energy_j == pytest.approx(16.0)
    meter = clocks.meter(4.0, 4.0, 4.0, 4.0, quantity="power")
    with meter.phase("train"):
        for duration_s in (1.0, 10.0):  # Such as a suspend: nobody knows what happened in it.
            clocks.work(duration_s)
            meter.sample()
    (phase,) = meter.take()
    assert phase.energy_j is None
    assert phase.coverage == pytest.approx(1 / 11)


def test_a_clock_that_stands_still_or_goes_back_adds_nothing() -> None:
    clocks = Clocks()
    meter = clocks.meter(4.0, 4.0, 4.0, 4.0, 4.0, quantity="power")
    with meter.phase("train"):
        for duration_s in (1.0, 0.0, -0.5):
            clocks.work(duration_s)
            meter.sample()
        clocks.work(1.5)
    assert meter.take()[0].energy_j == pytest.approx(8.0)


def test_noise_next_to_zero_is_no_negative_energy_but_the_net_keeps_its_sign() -> None:
    clocks = Clocks()
    meter = clocks.meter(-0.4, -0.4, -0.4, quantity="power")
    with meter.phase("train"):
        clocks.work(1.0)
        meter.sample()
        clocks.work(1.0)
    (phase,) = meter.take()
    assert phase.energy_j == 0.0
    assert phase.energy_raw_j == pytest.approx(-0.8)


# Idle


def test_the_idle_board_is_subtracted() -> None:
    clocks = Clocks()
    meter = clocks.meter(0.0, 20.0, 20.0, 50.0)
    idle = meter.measure_idle(10.0, clocks.work)
    assert idle is not None
    assert idle.power_w == 2.0
    with meter.phase("train"):
        clocks.work(5.0)
    (phase,) = meter.take()
    assert (phase.energy_j, phase.energy_net_j) == (30.0, 20.0)
    assert phase.net_uncertainty_j == pytest.approx(2.0)  # 10 % of the net.


def test_an_idle_board_that_cannot_be_measured_leaves_the_net_unknown() -> None:
    clocks = Clocks()
    meter = clocks.meter(None, None, 0.0, 3.0)
    assert meter.measure_idle(10.0, clocks.work) is None
    with meter.phase("train"):
        clocks.work(1.0)
    assert meter.take()[0].energy_net_j is None


def test_a_model_of_what_comes_on_top_has_no_idle() -> None:
    meter = Meter(CpuModel(load("unknown")))
    slept: list[float] = []
    assert meter.measure_idle(10.0, slept.append) is None
    assert slept == []
    with meter.phase("train"):
        sum(range(1000))
    (phase,) = meter.take()
    assert phase.duration_s > 0
    assert phase.energy_j is not None
    assert phase.energy_j >= 0
    assert phase.energy_net_j == phase.energy_j


# The thread


def test_a_source_is_sampled_during_the_phase_and_what_that_costs_is_stated() -> None:
    sampled = threading.Event()

    class Sampled(Scripted):
        about = About("sampled", "power", "board_input", "", "", Accuracy(relative=0.1), sample_s=0.001)

        def __init__(self) -> None:
            pass

        def read(self) -> Reading:
            if threading.current_thread().name == "energy-sampler":
                sum(range(100_000))
                sampled.set()
            return Reading(3.0)

    meter = Meter(Sampled())
    with meter.phase("train"):
        assert sampled.wait(10.0)
    (phase,) = meter.take()
    assert phase.meter_cpu_s is not None
    assert 0 < phase.meter_cpu_s <= phase.duration_s


def test_a_sensor_that_hangs_does_not_hold_up_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meter_module, "PATIENCE_S", 0.05)
    begun, let_go = threading.Event(), threading.Event()

    class Hanging(Scripted):
        about = About("hanging", "power", "board_input", "", "", Accuracy(relative=0.1), sample_s=0.001)

        def __init__(self) -> None:
            pass

        def read(self) -> Reading:
            if threading.current_thread().name == "energy-sampler":
                begun.set()
                assert let_go.wait(10.0)
            return Reading(3.0)

    meter = Meter(Hanging())
    with meter.phase("train"):
        assert begun.wait(10.0)
        time.sleep(0.1)
    (phase,) = meter.take()
    let_go.set()
    assert phase.energy_j is None
    assert "reason=a read has taken more than" in caplog.text


# Counters over a meter: wraps, resets, suspends


def test_a_counter_may_wrap_within_a_phase(tmp_path: Path) -> None:
    trees.laptop(tmp_path)
    clocks = Clocks()
    source = rapl.find(tmp_path, clock=lambda: clocks.now_s)
    assert isinstance(source, rapl.RaplSource)
    meter = Meter(source, lambda: clocks.now_s, lambda: 0.0)
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    with meter.phase("train", in_background=False):
        clocks.work(1.0)
        counter.write_text("1000000\n")
    (phase,) = meter.take()
    assert phase.energy_j == pytest.approx(1.02885)  # 262143328850 - 262143300000 + 1000000 uJ
    # A suspend: an hour later the counter has begun anew, and nobody knows how often.
    with meter.phase("train", in_background=False):
        clocks.work(3600.0)
        counter.write_text("500\n")
    with meter.phase("encode", in_background=False):
        clocks.work(1.0)
        counter.write_text("2000500\n")
    lost, after = meter.take()
    assert (lost.energy_j, lost.coverage) == (None, 0.0)
    assert after.energy_j == pytest.approx(2.0)


def test_the_default_clock_goes_on_through_a_suspend_and_is_never_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.platform == "linux":
        asked: list[int] = []
        monkeypatch.setattr(time, "clock_gettime", lambda which: asked.append(which) or 5.0)
        assert boot_time_s() == 5.0
        assert asked == [time.CLOCK_BOOTTIME]
