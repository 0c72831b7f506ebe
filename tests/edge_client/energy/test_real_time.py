"""The meter in real time: another process plays the power curve through the files; and what measuring costs."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from device_profiles import detect
from edge_client.energy.choose import choose
from edge_client.energy.conditions import watch
from edge_client.energy.meter import Meter, boot_time_s
from tests.edge_client.energy import trees
from tests.edge_client.energy.synthetic import Board, Curve, Segment

PHASES = [("receive", 2.0, 6.0), ("train", 4.0, 11.0), ("encode", 1.0, 7.0), ("upload", 2.5, 5.5)]


def play(root: Path, begin_s: float, end_s: float, tau_s: float) -> None:
    """Refresh the registers every 6.6 ms, as the chip does."""
    segments, at_s = [Segment(0.0, 5.0)], 1.0
    for _, duration_s, watts in PHASES:
        segments.append(Segment(at_s, watts))
        at_s += duration_s
    segments.append(Segment(at_s, 5.0))
    board = Board(root, Curve(segments), tau_s)
    while (now_s := boot_time_s()) < end_s:
        board.play(max(0.0, now_s - begin_s))
        time.sleep(0.0066)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("tau_s", [0.4, 0.0])
def test_a_board_in_another_process_is_measured_in_real_time(tmp_path: Path, tau_s: float) -> None:
    begin_s = boot_time_s() + 2.0  # Time for the process to start.
    total_s = sum(duration_s for _, duration_s, _ in PHASES)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=play, args=(tmp_path, begin_s, begin_s + total_s + 2, tau_s))
    process.start()
    try:
        time.sleep(max(0.0, begin_s + 0.5 - boot_time_s()))
        trees.jetson(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3767-0005")
        meter = Meter(choose("ina3221", detect(tmp_path), tmp_path))
        at_s = begin_s + 1.0
        for name, duration_s, _ in PHASES:
            time.sleep(max(0.0, at_s - boot_time_s()))
            at_s += duration_s
            with meter.phase(name):
                time.sleep(max(0.0, at_s - boot_time_s()))
        found = meter.take()
    finally:
        process.join(timeout=20)
        process.kill()
    # A sleep ends late by what the machine's other work takes; edges are where the meter says they are.
    for (name, duration_s, watts), phase in zip(PHASES, found, strict=True):
        assert phase.energy_j is not None
        assert phase.uncertainty_j is not None
        limit = 0.01 if duration_s >= 2 else 0.03
        late_s = abs(phase.duration_s - duration_s)
        truth_j = watts * phase.duration_s
        assert abs(phase.energy_j - truth_j) < limit * truth_j + 6 * late_s, (name, phase.energy_j / truth_j)
        assert abs(phase.energy_j - truth_j) <= phase.uncertainty_j


def cpu_of(measure: Callable[[], None]) -> float:
    """Return the CPU seconds of this process while something runs, kernel's included."""
    begin_s = time.process_time()
    measure()
    return time.process_time() - begin_s


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "build", [trees.orin_nano, trees.agx_xavier, trees.pi5], ids=lambda build: build.__name__
)
def test_measuring_at_10_hz_takes_at_most_a_percent_of_a_core_and_5_mb(
    tmp_path: Path, build: Callable[[Path], Path], record_property: Callable[[str, object], None]
) -> None:
    build(tmp_path)
    before_bytes = psutil.Process().memory_info().rss
    meter = Meter(choose("auto", detect(tmp_path), tmp_path), conditions=watch(tmp_path))
    duration_s = 5.0

    def measure() -> None:
        with meter.phase("train"):
            time.sleep(duration_s)

    measure()  # Once to warm up.
    cpu_s = cpu_of(measure)
    used_bytes = psutil.Process().memory_info().rss - before_bytes
    stated_s = meter.take()[-1].meter_cpu_s
    assert stated_s is not None
    record_property("cpu_share", cpu_s / duration_s)
    record_property("rss_bytes", used_bytes)
    assert cpu_s / duration_s <= 0.01
    assert used_bytes <= 5e6
    assert stated_s == pytest.approx(cpu_s, abs=0.006 * duration_s)
