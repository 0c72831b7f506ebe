"""What bench writes: CSV that reads back, a plot, and the table of targets."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tools.bench import report, table

STEP = {
    "model": "cnn",
    "batch": 16,
    "masks": "uniform",
    "threads": 1,
    "clock": "cpu",
    "isa": "neon",
    "flop_density": 0.1,
    "ratio_torch": None,
    "ratio_dense": 4.5,
}


def test_csv_reads_back_with_empty_cells_for_what_is_unknown(tmp_path):
    report.write_csv(tmp_path / "step.csv", [STEP, {"model": 'comma, quote "', "only_here": 0}])
    with (tmp_path / "step.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first.keys() == {*STEP, "only_here"}
    assert (first["ratio_torch"], first["ratio_dense"], first["only_here"]) == ("", "4.5", "")
    assert (second["model"], second["only_here"]) == ('comma, quote "', "0")


def test_each_layer_is_a_row_with_what_all_share():
    found = {"model": "cnn", "layers": [{"layer": "a", "share": 0.5}, {"layer": "b", "share": 0.25}]}
    assert report.flat(found) == [
        {"model": "cnn", "layer": "a", "share": 0.5},
        {"model": "cnn", "layer": "b", "share": 0.25},
    ]


@pytest.mark.parametrize("ratio_torch", [None, 5.0])
def test_the_plot_is_drawn(tmp_path, ratio_torch):
    pytest.importorskip("matplotlib")
    report.plot([STEP | {"ratio_torch": ratio_torch}, STEP | {"flop_density": 0.05}], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def bench() -> table.Bench:
    """A bench that has measured everything already."""
    found: dict = {"memory lenet": {"peak_rss_bytes": 120e6, "runtime": "onnxruntime"}}
    for density, ratio in zip(table.DENSITIES, (2.0, 5.6, None), strict=True):
        found[f"step resnet18 {density} erk dense_torch"] = {"ratio_torch": ratio}
    return table.Bench(0.0, "python", found)


def test_the_table_has_threshold_and_measured_side_by_side(bench, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "from_model", lambda model: None)
    for only in ("erk", "lenet"):
        table.print_table(bench, [], only, tmp_path)
    printed = capsys.readouterr().out
    row = "| ResNet-18 b16, ERK, against dense torch | below 2.0 / 3.2x | 5.6 / 5.5x | - / 8.5x |  |"
    assert row in printed
    assert (
        "| LeNet b64 at 98 %, peak resident memory of a client | above 120 / 110 MB (onnxruntime) |"
        in printed
    )
    assert "VGG" not in printed
    assert (tmp_path / "table.json").is_file()


def test_the_table_lists_every_target():
    names = [row.name for row in table.ROWS] + [single.name for single in table.SINGLES]
    for part in ("VGG-19", "MLP", "SparseGemm", "SparseProp", "onnxruntime-training", "ERK", "conv layer"):
        assert any(part in name for name in names), part
    assert table.ROWS[0].least == (5, 8, 11)
    assert set(table.STRUCTURED) == {0.75, 0.94, 0.98}


def test_without_a_structured_artifact_the_table_says_how_to_give_one(bench, capsys):
    table.print_table(bench, [], "structured", None)
    assert "--structured FOLDER" in capsys.readouterr().out


def test_a_narrowed_artifact_is_compared_with_the_whole_network(bench, capsys, monkeypatch):
    class Narrow:
        class manifest:  # noqa: N801
            model = "cnn"

            class layout:  # noqa: N801
                num_trainable = 4_000  # Of 66,154: 94 % are gone.

    monkeypatch.setattr(table, "from_artifact", lambda folder: Narrow)
    monkeypatch.setattr(table.step, "measure", lambda *a, **k: {"ratio_torch": 13.0})
    table.print_table(bench, [Path("narrow")], "structured", None)
    assert (
        "structured cnn b16, 94.0 % of parameters removed, against dense torch | 13.0 / 12x |"
        in capsys.readouterr().out
    )
