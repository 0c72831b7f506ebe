"""sparsefleet energy: what a board's tree offers, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from tests.edge_client.energy import trees
from tools.cli import main


def test_the_sources_of_a_recorded_tree(tmp_path, capsys):
    trees.orin_nano(tmp_path)
    assert main(["energy", "sources", "--root", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["profile"], report["chosen"]) == ("jetson-orin-nano", "ina3221:VDD_IN")
    assert report["conditions"]["power_mode"] == "1 25W"
    by_sensor = {one["sensor"]: one for one in report["sources"]}
    first = by_sensor["ina3221"]
    assert (first["unit"], first["scope"], first["tau_s"]) == ("W", "module_input", 0.422)
    assert first["value"] == pytest.approx(6.654, abs=0.001)
    assert by_sensor["pmic"]["reason"].startswith("neither ")
    assert by_sensor["pmic"]["cure"]

    assert main(["energy", "sources", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "* ina3221     ina3221:VDD_IN: 6.654 W, module_input" in text
    assert "temperature_c 52.031, clock_mhz unknown, throttling none seen, power_mode 1 25W" in text


def test_a_tree_that_is_none_is_refused(tmp_path, capsys):
    assert main(["energy", "sources", "--root", str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_boards_profile_is_one_object_with_joules_for_each_call(tmp_path, capsys):
    out = tmp_path / "profile.json"
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
    assert main(["energy", "profile", *options, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert (found["schema"], found["model"], found["batch"]) == ("sparsefleet-energy-profile/1", "lenet", 16)
    assert (found["source"]["scope"], found["idle"]) == ("model", None)
    parts = [(part["phase"], part["of"], part["density"]) for part in found["parts"]]
    assert parts == [
        (phase, of, density)
        for density in (1.0, 0.1)
        for phase, of in (("train", "step"), ("encode", "body"), ("decode", "body"), ("encode", "upload"))
    ]
    for part in found["parts"]:
        assert part["duration_s"] >= 0.02
        assert part["energy_j_each"] == pytest.approx(part["energy_j"] / part["count"])
        assert part["cpu_s_each"] * part["count"] == pytest.approx(part["cpu_s"])
    body, upload = found["parts"][5], found["parts"][7]
    assert upload["num_bytes"] < body["num_bytes"]  # Values without indices.


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--densities", "0"], "give numbers above 0"),
        (["--densities", "dense"], "give numbers above 0"),
        (["--batch", "0"], "must be positive"),
        (["--model", "gpt"], "no packaged graph of 'gpt'"),
        (["--energy", "ina3221"], "INA3221 is not available"),
        (["--out", "absent/profile.json"], "the folder does not exist"),
    ],
)
def test_a_profile_that_cannot_be_made_says_why(option, said, capsys):
    assert main(["energy", "profile", "--seconds", "0.01", *option]) == 2
    assert said in capsys.readouterr().err


def test_a_step_test_needs_a_power_sensor(capsys):
    assert main(["energy", "step-test", "--energy", "model"]) == 2
    assert "counts energy itself" in capsys.readouterr().err
