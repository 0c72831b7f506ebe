"""What a board has: the device extra, the newest stock onnxruntime, no torch. It trains all the same."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from tools.split import split

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_client_without_torch_trains_on_the_stock_runtime(tmp_path, federate):
    pytest.importorskip("sklearn")
    environment = tmp_path / "device"
    venv.create(environment, with_pip=True)
    binaries = environment / "bin"
    # Everything a board installs, by the command in the README; outside the source tree.
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", f"{ROOT}[device]"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [str(binaries / "python"), "-m", "pip", "list", "--format", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    packages = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "onnxruntime" in packages
    assert not packages & {"torch", "onnx", "onnxruntime-training-cpu", "amqtt", "rich", "scikit-learn"}

    export_model("cnn", (1, 8, 8), 10, tmp_path / "artifact", library_path())
    split(source="digits", out=tmp_path / "data", clients=2, how="iid", seed=0)
    one = federate(tmp_path, 2)
    one.client_command, one.client_folder = [str(binaries / "sparsefleet")], tmp_path
    one.write({"name": "fedpai", "density": 0.1}, rounds=3)
    one.start_coordinator("--out", str(one.out))
    one.start_clients()
    summary = one.finish()
    assert summary["client_peak_rss_bytes"] < 110e6
    rows = read_csv(one.out / "devices.csv")
    assert {row["runtime"].split()[0] for row in rows} == {"onnxruntime"}
    assert [row["updates"] for row in read_csv(one.out / "rounds.csv")] == ["2"] * 4
    # A board measures itself, with the graphs that the wheel brought.
    command = ["bench", "step", "--model", "cnn", "--density", "0.1", "--seconds", "0.1", "--json"]
    done = subprocess.run(
        [str(binaries / "sparsefleet"), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert (measured["graph"], measured["ratio_torch"]) == ("packaged", None)
    assert measured["ratio_dense"] > 0
    # The command that needs torch says so in one line.
    refused = subprocess.run(
        [str(binaries / "sparsefleet"), "export", "cnn", "--out", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert refused.returncode == 2
    assert "sparsefleet[export]" in refused.stderr
    assert "Traceback" not in refused.stderr
