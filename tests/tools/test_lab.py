"""sparsefleet lab: its file, its cells, going on after a stop, and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ConfigError
from tools.cli import main
from tools.lab.cell import partition
from tools.lab.lab import prepare
from tools.lab.plan import Cell, cells, read

FOLDER = Path(__file__).parents[2] / "tools" / "lab"

TINY = """
model = "cnn"
rounds = 3
seeds = [0, 1]
alphas = [1.0]
[data]
source = "digits"
clients = 3
[training]
local_epochs = 1
batch_size = 32
learning_rate = 0.05
[[rows]]
method = { name = "fedavg" }
[[rows]]
name = "skip"
method = { name = "proxskip", density = 0.2 }
wire = { upload_values = "int8" }
"""

FIELDS = {
    "method",
    "density",
    "alpha",
    "seeds",
    "accuracy_mean",
    "accuracy_std",
    "local_accuracy_mean",
    "upload_bytes_per_round",
    "download_bytes_per_round",
    "compression",
    "mask_iou",
    "min_layer_density",
    "zero_sum_max",
}


def tiny(tmp_path: Path, text: str = TINY) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_lab_runs_goes_on_where_it_was_and_prints_its_table(tmp_path, capsys):
    path, out = tiny(tmp_path), tmp_path / "out"
    assert main(["lab", str(path), "--out", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["fedavg", "skip"]
    for row in rows:
        assert set(row) >= FIELDS
        assert row["seeds"] == 2
        assert row["accuracy_mean"] > 0.5
        assert 0 < row["local_accuracy_mean"] <= 1
    dense, sparse = rows
    assert sparse["zero_sum_max"] < 1e-4
    assert dense["zero_sum_max"] is None
    assert sparse["upload_bytes_per_round"] < 0.15 * dense["upload_bytes_per_round"]
    assert sparse["density"] == pytest.approx(0.2, abs=0.01)

    # As if it had been stopped: one cell is not finished, the others are not run again.
    cut = out / "cells" / Cell(1, 1.0, 1).name
    (cut / "result.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in out.glob("cells/*/result.json")}
    assert main(["lab", str(path), "--out", str(out), "--json"]) == 0
    for row, before_it in zip(json.loads(capsys.readouterr().out), rows, strict=True):
        for name, value in row.items():
            if name in ("download_bytes_per_round", "compression"):  # A receipt may count for the next round.
                assert value == pytest.approx(before_it[name], rel=0.01)
            else:  # The same bits, so the same figures.
                assert value == before_it[name], name
    assert (cut / "result.json").is_file()
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert (out / "table.md").read_text().count("\n") == 4

    path.write_text(TINY.replace("rounds = 3", "rounds = 4"))
    assert main(["lab", str(path), "--out", str(out)]) != 0
    assert "another plan" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lab_that_was_killed_goes_on_where_it_was(tmp_path, capsys):
    """With all its processes, in the middle of a cell: as by a power cut."""
    path, out = tiny(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "tools.cli", "lab", str(path), "--out", str(out)]
    with subprocess.Popen(command, cwd=FOLDER.parents[1], start_new_session=True) as process:
        try:
            until_s = time.monotonic() + 60
            while not (begun := [*out.glob("cells/*")])[1:] and time.monotonic() < until_s:
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert len(begun) == 2
    done = {file: file.stat().st_mtime_ns for file in out.glob("cells/*/result.json")}
    assert len(done) == 1
    assert main(["lab", str(path), "--out", str(out), "--json"]) == 0
    assert [row["seeds"] for row in json.loads(capsys.readouterr().out)] == [2, 2]
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in done.items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("rounds = 3", "round = 3"), "round is not a known key"),
        (('name = "fedavg"', 'name = "fedavrg"'), "unknown method"),
        (('name = "skip"', 'name = "fedavg"'), "two rows"),
        (("[[rows]]\nmethod", "[[rows]]\ntraining = { epochs = 1 }\nmethod"), "epochs"),
        (("seeds = [0, 1]", "seeds = []"), "seeds"),
        (("alphas = [1.0]", ""), "either alphas"),
        (("clients = 3", 'clients = 3\nby = "user"'), "either alphas"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(tmp_path, change, text):
    assert change[0] in TINY
    with pytest.raises(ConfigError, match=text):
        read(tiny(tmp_path, TINY.replace(*change, 1)))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_files_that_come_with_it_can_be_read(path):
    plan = read(path)
    assert len(cells(plan)) == len(plan.rows) * len(plan.seeds) * len(plan.skews)


@pytest.mark.parametrize(
    "parts", [("x", "y", "user"), ("x_train", "y_train", "user_train", "x_test", "y_test")]
)
def test_clients_may_be_those_of_the_data(parts, tmp_path):
    """Ten examples a user in 80 of 100 that were drawn: the natural partition has each user's own."""
    number = np.arange(100)
    arrays = {
        "x": np.stack([number % 5 + 1.0, number], 1).astype(np.float32)[:, None, None],
        "y": number // 5 % 4,
        "user": number % 5,
    }
    np.savez(tmp_path / "people.npz", **{name: arrays[name.partition("_")[0]] for name in parts})
    text = TINY.replace('source = "digits"', f'source = "{tmp_path / "people.npz"}"\nby = "user"\ntrain = 80')
    text = (
        text.replace("alphas = [1.0]", "")
        .replace('"cnn"', '"logistic"\ninput_shape = "1,1,2"')
        .replace("= 3", "= 4")
    )
    plan = read(tiny(tmp_path, text + "\n").rename(tmp_path / "people.toml"))
    assert [cell.name for cell in cells(plan)][:2] == ["row-00-natural-seed-0", "row-01-natural-seed-0"]
    prepare(plan, tmp_path / "out")
    folder = partition(plan, None, 0, tmp_path / "out")
    users = [set(np.load(path)["x"][:, 0, 0, 0]) for path in sorted(folder.glob("client-*.npz"))]
    assert len(users) == 4
    assert all(len(found) == 1 for found in users)
    assert len(set.union(*users)) == 4
    plan.data.by = "owner"
    with pytest.raises(ConfigError, match="no array 'owner'"):
        prepare(plan, tmp_path / "other")
