from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator import board_profiles
from coordinator.cost_model import Step
from protocol.errors import ConfigError

MANIFEST: Any = SimpleNamespace(model="lenet", layout=SimpleNamespace(num_trainable=61_706))
PROFILE: dict[str, Any] = {
    "schema": "sparsefleet-energy-profile/1",
    "machine": "Raspberry Pi 5",
    "profile": "rpi5",
    "model": "lenet",
    "num_parameters": 61_706,
    "batch": 16,
    "parts": [
        {
            "phase": "train",
            "of": "step",
            "density": 1.0,
            "duration_s_each": 0.02,
            "energy_j_each": 0.12,
            "count": 9,
        },
        {
            "phase": "train",
            "of": "step",
            "density": 0.1,
            "duration_s_each": 0.01,
            "energy_j_each": None,
            "count": 9,
        },
        {
            "phase": "encode",
            "of": "body",
            "density": 1.0,
            "duration_s_each": 0.5,
            "energy_j_each": 1.0,
            "count": 9,
        },
    ],
}


def written(tmp_path, name: str = "pi5.json", **changes: object) -> str:
    (tmp_path / name).write_text(json.dumps({**PROFILE, **changes}))
    return str(tmp_path / name)


def test_steps_by_density_under_the_name_of_the_device_profile(tmp_path):
    found = board_profiles.read([written(tmp_path)], MANIFEST, 16)
    assert found == {"rpi5": (Step(1.0, 0.02, 0.12), Step(0.1, 0.01, None))}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": "other/1"}, "has schema 'other/1'"),
        ({"model": "resnet8"}, r"is of resnet8 \(61,706 parameters\) at batch 16, this run trains lenet"),
        ({"num_parameters": 5}, "5 parameters"),
        ({"batch": 32}, "at batch 32"),
        ({"parts": 3}, "no file of `energy profile --out`"),
    ],
)
def test_a_profile_of_something_else_is_refused(changes, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        board_profiles.read([written(tmp_path, **changes)], MANIFEST, 16)


def test_two_files_of_one_board_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="two files are of rpi5"):
        board_profiles.read([written(tmp_path), written(tmp_path, "other.json")], MANIFEST, 16)


def test_what_energy_profile_writes_can_be_read(tmp_path, capsys):
    """The two sides share no code: this holds them together."""
    from tools.cli import main
    from tools.energy_profile import SCHEMA

    options = [
        "--model",
        "lenet",
        "--seconds",
        "0.02",
        "--densities",
        "1,0.1",
        "--energy",
        "model",
        "--threads",
        "1",
    ]
    assert main(["energy", "profile", *options, "--out", str(tmp_path / "p.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    manifest: Any = SimpleNamespace(
        model="lenet", layout=SimpleNamespace(num_trainable=found["num_parameters"])
    )
    (steps,) = board_profiles.read([str(tmp_path / "p.json")], manifest, 16).values()
    assert [step.density for step in steps] == [1.0, 0.1]
    assert all(step.seconds > 0 and step.joules is not None for step in steps)
    assert SCHEMA == board_profiles.SCHEMA
