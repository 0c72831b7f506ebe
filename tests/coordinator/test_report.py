from __future__ import annotations

import json

from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import DEVICES, EVENTS, RunFolder, device_rows, read_csv
from protocol.config import load
from protocol.messages import Phase, Training


def experiment() -> Experiment:
    made = Experiment(
        artifact="a",
        data="d",
        rounds=1,
        method={"name": "fedpai", "density": 0.1},
        training=Training(1, 8, 0.1),
        cohort=CohortConfig(clients=1),
    )
    made.broker.password = made.broker.client_password = "secret"
    return made


def phases(energy_j: float | None) -> list[Phase]:
    return [
        Phase("receive", 1.0, 0.25, 0.5, 0.25, "model:x", 100, 10),
        Phase("train", 2.0, 1.5, energy_j, None if energy_j is None else 1.0, "model:x"),
    ]


def test_an_unknown_figure_is_an_empty_cell(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    folder.devices(device_rows(1, "a", phases(None), None, "r", "k"))
    lines = read_csv(tmp_path / DEVICES)
    assert [line["energy_j"] for line in lines] == ["0.5", ""]
    assert [line["peak_rss_bytes"] for line in lines] == ["", ""]
    assert folder.totals.energy_j is None  # Not 0.5: a phase is missing.


def test_totals_are_the_same_after_a_run_is_continued(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    folder.devices(device_rows(1, "a", phases(3.0), 1000, "r", "k"))
    folder.devices(device_rows(2, "b", phases(4.0), 3000, "r", "k"))
    again = RunFolder(tmp_path, experiment()).totals
    assert again == folder.totals
    assert again.energy_j == 0.5 + 3.0 + 0.5 + 4.0
    assert (again.download_bytes, again.upload_bytes, again.peak_rss_bytes) == (200, 20, 3000)


def test_a_round_that_was_under_way_is_forgotten_when_it_is_done_again(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    for number in (1, 2, 3):
        folder.devices(device_rows(number, "a", phases(3.0), 1000, "r", "k"))
    with (tmp_path / DEVICES).open("a") as file:
        file.write("3,a,tra")  # The power went here.
    folder = RunFolder(tmp_path, experiment(), next_round=3)
    assert {line["round_number"] for line in read_csv(tmp_path / DEVICES)} == {"1", "2"}
    assert folder.totals.energy_j == 2 * (0.5 + 3.0)
    folder.devices(device_rows(3, "a", phases(3.0), 1000, "r", "k"))
    assert [line["round_number"] for line in read_csv(tmp_path / DEVICES)] == ["1", "1", "2", "2", "3", "3"]


def test_the_resolved_configuration_can_be_run_again_and_holds_no_secret(tmp_path):
    RunFolder(tmp_path, experiment())
    assert "secret" not in (tmp_path / "config.toml").read_text()
    assert load(tmp_path / "config.toml", Experiment).method == {"name": "fedpai", "density": 0.1}


def test_events_are_one_object_a_line(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    folder.event("first", round=1)
    folder.event("second", client="a")
    lines = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["first", "second"]
