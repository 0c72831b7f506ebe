"""The model of load and clock: between idle and full load, never outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiles import load
from edge_client.energy.load_model import LoadModel, find
from edge_client.energy.source import Unavailable
from tests.edge_client.energy import trees


class Machine:
    """Four cores whose ticks the test sets."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s, self.ticks = root, 0.0, [[100, 400] for _ in range(4)]
        trees.pi(root, "Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b")
        self._write()
        self.model = LoadModel(load("rpi4b"), root, lambda: self.now_s)

    def pass_s(self, duration_s: float, *busy: float) -> float:
        """Let time pass with these loads; return the mean watts by the model."""
        before = self.model.read().value
        self.now_s += duration_s
        for ticks, share in zip(self.ticks, busy, strict=True):
            ticks[0] += round(share * duration_s * 100)
            ticks[1] += round((1 - share) * duration_s * 100)
        self._write()
        return (self.model.read().value - before) / duration_s

    def _write(self) -> None:
        lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 0 0 0" for n, (busy, idle) in enumerate(self.ticks)]
        trees.write(self.root, {"proc/stat": "\n".join(["cpu  1 1 1 1 1 1 1 1 1 1", *lines, "intr 5"])})

    def clock(self, khz: int) -> None:
        trees.write(self.root, {"sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": khz})


def test_idle_full_and_half_load(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.pass_s(2.0, 0, 0, 0, 0) == pytest.approx(2.3)
    assert machine.pass_s(2.0, 1, 1, 1, 1) == pytest.approx(5.8)
    assert machine.pass_s(2.0, 1, 1, 0, 0) == pytest.approx(2.3 + 3.5 / 2)


def test_a_lower_clock_costs_its_square(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.clock(750_000)  # Half of 1.5 GHz.
    assert machine.pass_s(2.0, 1, 1, 1, 1) == pytest.approx(2.3 + 3.5 / 4)


def test_a_counter_that_jumps_back_stays_within_the_range(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.ticks = [[0, 0] for _ in range(4)]
    assert 2.3 <= machine.pass_s(1.0, 1, 1, 1, 1) <= 5.8


def test_joules_never_fall_between_two_reads_close_together(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.pass_s(2.0, 1, 1, 1, 1)
    values = []
    for _ in range(20):
        machine.now_s += 0.01
        values.append(machine.model.read().value)
    assert values == sorted(values)


def test_without_the_kernels_counters_there_is_no_model(tmp_path: Path) -> None:
    found = find(tmp_path, load("rpi4b"))
    assert isinstance(found, Unavailable)
    assert "proc/stat" in found.reason
