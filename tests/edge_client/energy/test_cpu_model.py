"""The model's joules are CPU seconds times the watts of a busy core."""

import pytest

from device_profiles import load
from edge_client.energy.cpu_model import CpuModel, find
from edge_client.energy.source import Unavailable


def test_joules_are_cpu_seconds_times_the_watts_of_a_core() -> None:
    cpu_s = 100.0
    model = CpuModel(load("rpi4b"), lambda: cpu_s)
    assert model.read().value == 0.0
    cpu_s = 108.0
    assert model.read().value == pytest.approx(7.0)  # 8 s * (5.8 - 2.3) W / 4


def test_the_model_names_itself_and_its_profile() -> None:
    about = CpuModel(load("rpi-zero2w")).about
    assert (about.name, about.scope, about.is_net) == ("model:cpu-time(rpi-zero2w)", "model", True)
    assert about.accuracy.systematic_j(10.0, 1.0) == pytest.approx(3.0)


def test_a_board_without_published_watts_has_no_model() -> None:
    absent = find(load("jetson-orin-nx"))
    assert isinstance(absent, Unavailable)
    assert absent.reason == "nobody has published idle and full-load watts of jetson-orin-nx"
