from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from tests.tools.energy_report.runs import run
from tools.cli import main
from tools.energy_report.command import TABLES, as_csv, gather

DOCUMENT = Path(__file__).parents[3] / "docs/energy_report.md"


def test_a_boards_joules_by_step_example_round_and_megabyte(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0, 40.0], [30.0, 40.0]], [0.5, 0.75])], [])
    pi = next(board for board in found["boards"] if board["client_id"] == "pi")
    # 20 + 30 J for 20 steps of 160 examples; a round is training and 1 J of upload, never the 100 J of waiting.
    assert (pi["steps"], pi["examples"], pi["rounds"]) == (20, 160, 2)
    assert pi["step_j"] == pytest.approx(50 / 20)
    assert pi["step_uncertainty_j"] == pytest.approx(
        5 / 20
    )  # 10 % of each, added: the errors are one sensor's.
    assert pi["example_j"] == pytest.approx(50 / 160)
    assert pi["round_j"] == pytest.approx(52 / 2)
    assert pi["round_uncertainty_j"] == pytest.approx((5 + 2 * 0.5) / 2)
    assert pi["sent_mb_j"] == pytest.approx(2 / 0.002)
    assert pi["power_mean_w"] == pytest.approx(52 / 10)
    assert (pi["power_peak_w"], pi["idle_w"], pi["step_s"]) == (12.0, 2.0, 0.4)
    assert (pi["kind"], pi["scope"]) == ("measured", "module_input")


def test_the_curve_is_what_had_been_spent_by_then(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0, 40.0], [30.0, 40.0]], [0.5, 0.75])], [])
    assert [point["energy_j"] for point in found["curve"]] == [62.0, 62.0 + 72.0]
    assert [point["bytes"] for point in found["curve"]] == [2200, 4400]
    assert [point["uncertainty_j"] for point in found["curve"]] == pytest.approx([7.0, 15.0])


def test_the_price_of_the_accuracy_that_all_runs_reached(tmp_path):
    slow = run(tmp_path / "slow", [[20.0], [20.0], [20.0]], [0.5, 0.6, 0.7])
    fast = run(tmp_path / "fast", [[50.0], [50.0]], [0.8, 0.9])
    found = {one["run"]: one for one in gather([slow, fast], [])["runs"]}
    assert found["slow"]["target_accuracy"] == found["fast"]["target_accuracy"] == 0.7
    assert (found["slow"]["target_round"], found["slow"]["target_j"]) == (3, 63.0)
    assert (found["fast"]["target_round"], found["fast"]["target_j"]) == (1, 51.0)


def test_a_sum_with_an_unknown_part_is_unknown_and_said_so(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0, 40.0], [None, 40.0], [20.0, 40.0]], [0.5, 0.6, 0.7])], [])
    assert [point["energy_j"] for point in found["curve"]] == [62.0, None, None]
    pi, orin = (next(b for b in found["boards"] if b["client_id"] == name) for name in ("pi", "orin"))
    assert (pi["step_j"], pi["round_j"], pi["power_mean_w"]) == (None, None, None)
    assert orin["step_j"] == 4.0
    assert found["notes"] == [
        "The joules of pi in a are unknown, at least of one phase; so are sums with them."
    ]


def test_runs_of_different_kinds_come_with_a_warning(tmp_path):
    measured = run(tmp_path / "a", [[20.0]], [0.5])
    constant = run(tmp_path / "b", [[20.0]], [0.5], source="model:cpu-time(rpi4b)", scope="model")
    found = gather([measured, constant], [])
    assert [one["kind"] for one in found["runs"]] == ["measured", "constant"]
    assert "do not compare: a: measured, module_input; b: constant, model" in found["notes"][0]


def test_a_board_that_was_slowed_is_named(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0]], [0.5], throttling="throttled,under-voltage")], [])
    assert (found["boards"][0]["throttled_s"], found["boards"][0]["throttling"]) == (
        4.0,
        "throttled,under-voltage",
    )
    assert "pi in a was slowed for 4 s" in found["notes"][0]


def test_a_sensor_that_hung_is_named(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0]], [0.5], energy_warning="stuck: 57 equal readings")], [])
    assert found["notes"] == ["The joules of pi in a are not to be believed: stuck: 57 equal readings."]


def test_bytes_of_disk_and_network_are_summed_where_all_are_known(tmp_path):
    found = gather([run(tmp_path / "a", [[20.0], [20.0]], [0.5, 0.6], disk_written_bytes=4096)], [])
    by_phase = {row["phase"]: row for row in found["phases"]}
    assert (by_phase["train"]["disk_written_bytes"], by_phase["train"]["net_sent_bytes"]) == (8192, None)


def test_a_board_that_rested_says_why(tmp_path):
    folder = run(tmp_path / "a", [[20.0], [20.0]], [0.5, 0.6])
    with (folder / "events.jsonl").open("a") as file:
        for resting in (
            {},
            {"pi": "hot: 80 of 70 °C"},
            {"pi": "hot: 75 of 70 °C", "orin": "slowed: throttled"},
        ):
            file.write(json.dumps({"event": "round-opened", "resting": resting}) + "\n")
    assert gather([folder], [])["boards"][0]["rested"] == "hot in 2 rounds"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [run(tmp_path / day / "sparse", [[1.0]], [0.5]) for day in ("mon", "tue")]
    assert [one["run"] for one in gather(runs, [])["runs"]] == ["mon/sparse", "tue/sparse"]
    assert [one["run"] for one in gather([tmp_path / "mon"], [])["runs"]] == ["sparse"]  # A folder of runs.
    with pytest.raises(ConfigError, match="twice"):
        gather([runs[0], runs[0]], [])


def test_every_column_is_documented(tmp_path, capsys):
    profile = tmp_path / "pi.json"
    options = [
        "--model",
        "lenet",
        "--seconds",
        "0.02",
        "--densities",
        "1",
        "--energy",
        "model",
        "--threads",
        "1",
    ]
    assert main(["energy", "profile", *options, "--out", str(profile), "--json"]) == 0
    found = gather([run(tmp_path / "a", [[20.0, 40.0]], [0.5]), profile], [])
    text = DOCUMENT.read_text()
    missing = {
        f"{name}.{key}" for name in TABLES for row in found[name] for key in row if f"`{key}`" not in text
    }
    assert not missing
    assert found["steps"][0]["kind"] == "constant"


def test_csv_and_json_are_the_same_numbers(tmp_path, capsys):
    folder = run(tmp_path / "a", [[20.0, None]], [0.5])
    assert main(["energy", "report", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    header, first, second = as_csv(printed["boards"]).splitlines()
    assert header.split(",") == list(printed["boards"][0])
    assert first.split(",")[header.split(",").index("step_j")] == ""  # Orin's, unknown.
    assert second.split(",")[header.split(",").index("step_j")] == "2.0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give a run folder"),
        (["absent", "--json"], "absent holds no rounds.csv"),
        (["a"], "give --out"),
        (["a", "--out", "nowhere/r.html"], "the folder does not exist"),
        (["broken.json", "--json"], "no board's profile"),
        (["a", "--samples", "broken.json", "--json"], "cannot be read as samples"),
    ],
)
def test_what_cannot_be_reported_is_refused(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "a", [[20.0]], [0.5])
    (tmp_path / "broken.json").write_text('{"schema": "other"}')
    assert main(["energy", "report", *arguments]) == 2
    assert text in capsys.readouterr().err
