"""The time constant is found again from a board whose filter is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_client.energy.source import NoSource
from edge_client.energy.step_response import busy, fit, step_test
from protocol.errors import ConfigError
from tests.edge_client.energy.synthetic import Board, Curve, Segment, VirtualTime


def run(root: Path, tau_s: float, loaded_w: float = 11.0) -> float:
    """Return what the step test finds on a board of this filter."""
    curve = Curve([Segment(0.0, 5.0)])
    board = Board(root, curve, tau_s)
    time = VirtualTime(board.play)

    @contextmanager
    def load() -> Iterator[None]:
        curve.segments = [*curve.segments, Segment(time.now_s, loaded_w)]
        yield
        curve.segments = [*curve.segments, Segment(time.now_s, 5.0)]

    def sleep(duration_s: float) -> None:
        time.now_s += duration_s
        board.play(time.now_s)

    found = step_test(board.sensor(), load, 3, time.clock, sleep)
    assert found.fall_w == pytest.approx(loaded_w - 5.0, rel=0.02)
    assert abs(found.tau_s - tau_s) <= max(found.uncertainty_s, 0.05 * tau_s)
    return found.tau_s


@pytest.mark.parametrize("tau_s", [0.2, 0.4, 0.8])
def test_a_filters_time_constant_is_found(tmp_path: Path, tau_s: float) -> None:
    assert run(tmp_path, tau_s) == pytest.approx(tau_s, rel=0.05)


def test_a_sensor_without_a_filter_has_none(tmp_path: Path) -> None:
    assert run(tmp_path, 0.0) == 0.0


def test_a_fall_that_does_not_stand_out_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fell by 0\.0"):
        run(tmp_path, 0.4, loaded_w=5.05)


def test_a_counter_has_no_time_constant() -> None:
    with pytest.raises(ConfigError, match="counts energy itself"):
        step_test(NoSource())


def test_when_the_fall_began_does_not_matter() -> None:
    def late(delay_s: float) -> float:
        times = [n / 50 for n in range(300)]
        return fit(times, [5 + 6 * math.exp(-max(0.0, t - delay_s) / 0.4) for t in times])[0]

    assert late(0.0) == pytest.approx(0.4, rel=0.01)
    assert late(1.0) == pytest.approx(0.4, rel=0.01)


def test_the_load_ends() -> None:
    with busy(1):
        pass
