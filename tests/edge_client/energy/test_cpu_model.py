"""The model's joules are CPU seconds times the watts of a busy core."""

import pytest

from device_profiles import load
from edge_client.energy.cpu_model import CpuModel


def test_joules_are_cpu_seconds_times_the_watts_of_a_core() -> None:
    cpu_s = 100.0
    model = CpuModel(load("rpi4b"), lambda: cpu_s)
    assert model.read().energy_j == 0.0
    cpu_s = 108.0
    assert model.read().energy_j == pytest.approx(7.0)  # 8 s * (5.8 - 2.3) W / 4


def test_the_model_names_itself_and_its_profile() -> None:
    model = CpuModel(load("rpi-zero2w"))
    assert (model.name, model.scope, model.poll_s) == ("model:cpu-time(rpi-zero2w)", "model", None)
    assert model.accuracy.uncertainty_j(10.0, 1.0) == pytest.approx(3.0)
