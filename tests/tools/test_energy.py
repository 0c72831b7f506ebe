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
