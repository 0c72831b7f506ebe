"""Joules per phase against a board whose true power is known, through real files."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.energy.meter import Meter
from protocol.messages import Phase
from tests.edge_client.energy.synthetic import Board, Curve, Segment, VirtualTime

EXACT = {"relative": 0.0, "offset_w": 0.0}  # The synthetic sensor has neither gain nor offset errors.


def measured(
    board: Board, phases: list[tuple[str, float]], jitter: random.Random | None = None
) -> list[Phase]:
    """Play the phases one after another at 10 Hz; the board was idle for a second before."""
    time = VirtualTime(board.play)
    sensor = board.sensor()
    sensor.about = replace(sensor.about, accuracy=replace(sensor.about.accuracy, **EXACT))
    meter = Meter(sensor, time.clock, lambda: 0.0)
    time.now_s = 1.0
    for name, duration_s in phases:
        with meter.phase(name, in_background=False):
            assert meter.first_sample_s is not None
            late_s = jitter.uniform(0, 0.05) if jitter else 0.0
            time.work(duration_s, meter.sample, 0.1, meter.first_sample_s + late_s)
    return meter.take()


def curve_of(phases: list[tuple[str, float]], watts: list[float], ripple_w: float = 0.0) -> Curve:
    """Idle at 5 W for a second, then a step at the beginning of each phase."""
    segments, begin_s = [Segment(0.0, 5.0)], 1.0
    for (_, duration_s), power_w in zip(phases, watts, strict=True):
        segments.append(Segment(begin_s, power_w, ripple_w))
        begin_s += duration_s
    return Curve(segments)


def errors(board: Board, phases: list[tuple[str, float]], got: list[Phase]) -> list[float]:
    begin_s, found = 1.0, []
    for (_, duration_s), phase in zip(phases, got, strict=True):
        truth_j = board.curve.energy_j(begin_s, begin_s + duration_s)
        assert phase.energy_j is not None
        found.append(phase.energy_j / truth_j - 1)
        begin_s += duration_s
    return found


LONG = [("receive", 2.0), ("train", 8.0), ("encode", 2.5)]


@pytest.mark.parametrize("tau_s", [0.0, 0.4])
def test_phases_of_two_seconds_are_within_a_percent(tmp_path: Path, tau_s: float) -> None:
    board = Board(tmp_path, curve_of(LONG, [6.0, 11.0, 7.0], ripple_w=0.5), tau_s)
    worst = max(abs(error) for error in errors(board, LONG, measured(board, LONG)))
    assert worst < 0.01


SHORT = [("receive", 1.0), ("train", 1.0), ("encode", 1.0)]


def test_phases_of_a_second_behind_the_filter_are_within_three_percent(tmp_path: Path) -> None:
    board = Board(tmp_path, curve_of(SHORT, [5.0, 11.0, 6.0]))
    got = measured(board, SHORT)
    assert max(abs(error) for error in errors(board, SHORT, got)) < 0.03
    # Read plainly, the same second is a fifth short: the correction is what does it.
    assert got[1].energy_raw_j == pytest.approx(0.79 * 11.0, rel=0.04)
    # The corrections of neighbours cancel: the total hardly changes.
    corrected, raw = (sum(getattr(p, name) for p in got) for name in ("energy_j", "energy_raw_j"))
    assert corrected == pytest.approx(raw, rel=0.05)


@pytest.mark.parametrize(("tau_s", "shunt_ohm"), [(0.4, 0.005), (0.0, 0.005), (0.4, 0.002)])
def test_the_uncertainty_covers_the_truth(tmp_path: Path, tau_s: float, shunt_ohm: float) -> None:
    """The statistical part alone: gain and offset are exact, and say so."""
    rng = random.Random(7)
    covered = total = 0
    relative = []
    for run in range(70):  # 3 x 70 boards of 4 phases each.
        phases = [
            ("a", rng.uniform(0.5, 1.5)),
            ("b", rng.uniform(1, 4)),
            ("c", 1.0),
            ("d", rng.uniform(2, 5)),
        ]
        watts = [rng.uniform(3, 15) for _ in phases]
        curve = curve_of(phases, watts, ripple_w=rng.choice([0.0, 0.3, 1.5]))
        for segment in curve.segments:
            segment.ripple_hz = rng.uniform(0.7, 6)
        board = Board(tmp_path / str(run), curve, tau_s, shunt_ohm=shunt_ohm)
        begin_s = 1.0
        for (_, duration_s), phase in zip(phases, measured(board, phases, rng), strict=True):
            truth_j = curve.energy_j(begin_s, begin_s + duration_s)
            begin_s += duration_s
            assert phase.energy_j is not None
            assert phase.uncertainty_j is not None
            covered += abs(phase.energy_j - truth_j) <= phase.uncertainty_j
            relative.append(phase.uncertainty_j / truth_j)
            total += 1
    assert covered >= 0.95 * total, (covered, total)
    # An uncertainty that is always right because it is huge would say nothing.
    assert sorted(relative)[len(relative) // 2] < 0.03
