from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import DEVICES, EVENTS, DeviceRow, RoundRow, RunFolder, device_rows, read_csv
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


def test_waiting_is_listed_and_is_no_part_of_the_total(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    idle = Phase("idle", 60.0, 0.1, 120.0, 6.0, "ina3221:VDD_IN")
    folder.devices(device_rows(1, "a", [idle, *phases(3.0)], 1000, "r", "k"))
    assert folder.totals.phases["idle"].energy_j == 120.0
    assert folder.totals.energy_j == 3.5


MEASURED = Phase(
    phase="train",
    duration_s=2.0,
    cpu_s=1.5,
    energy_j=11.0,
    uncertainty_j=0.5,
    energy_source="ina3221:VDD_IN",
    energy_scope="module_input",
    energy_raw_j=10.5,
    energy_net_j=-0.25,
    net_uncertainty_j=0.5,
    power_peak_w=6.5,
    coverage=1.0,
    pooled="train+encode",
    temperature_c=52.5,
    clock_mhz=1500.0,
    throttling="throttled,under-voltage",
    meter_cpu_s=0.01,
    num_steps=12,
    num_examples=190,
    battery_percent=71.0,
    energy_warning="stuck: 57 equal readings",
    disk_read_bytes=4096,
    disk_written_bytes=8192,
    net_received_bytes=100_000,
    net_sent_bytes=50_000,
)


def test_every_field_of_a_phase_has_a_column_and_is_read_back(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    rows = device_rows(1, "a", [MEASURED], 1000, "r", "k")
    folder.devices(rows)
    (line,) = read_csv(tmp_path / DEVICES)
    for name in MEASURED.__struct_fields__:
        assert line[name] == str(getattr(MEASURED, name)), name
    assert RunFolder(tmp_path, experiment()).totals == folder.totals
    (event,) = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert (event["event"], event["client"], event["phase"]) == ("energy-warning", "a", "train")
    assert event["reason"] == "stuck: 57 equal readings"


def test_a_folder_of_an_older_version_is_continued_in_its_own_columns(tmp_path):
    folder = RunFolder(tmp_path, experiment())
    folder.devices(device_rows(1, "a", phases(3.0), 1000, "r", "k"))
    old = (tmp_path / DEVICES).read_text().splitlines()
    columns = old[0].split(",")[:13]  # Up to `kernels`.
    (tmp_path / DEVICES).write_text("\n".join(",".join(line.split(",")[:13]) for line in old) + "\n")
    again = RunFolder(tmp_path, experiment())
    assert again.totals.energy_j == 3.5
    again.devices(device_rows(2, "a", [MEASURED], 1000, "r", "k"))
    *_, last = read_csv(tmp_path / DEVICES)
    assert list(last) == columns
    assert (last["phase"], last["energy_j"], last["kernels"]) == ("train", "11.0", "k")


def test_every_column_is_documented():
    text = (Path(__file__).parents[2] / "docs/report.md").read_text()
    for table, kind in (("rounds.csv", RoundRow), ("devices.csv", DeviceRow)):
        part = text.partition(f"## {table}\n")[2].partition("\n## ")[0]
        cells = re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE)
        documented = {name.strip() for cell in cells for name in cell.split(",")}
        assert {field.name for field in fields(kind)} == documented - {"column", "---"}
