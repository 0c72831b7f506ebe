"""What a board has: the device extra, the newest stock onnxruntime, no torch. It trains all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from tools.split import split

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> Path:
    """Everything a board installs, by the command in the README; outside the source tree."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder / "environment", with_pip=True)
    binaries: Path = folder / "environment" / "bin"
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", f"{ROOT}[device]"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return binaries


TRAIN = """
import sys
from pathlib import Path
import numpy as np
from edge_client.ort import PORTABLE, installed_package
from edge_client.runtime import open_runtime
from edge_client.session import Trainer
from protocol import artifact
from protocol.examples import Examples
from protocol.messages import Training
from protocol.seeded import generator
from protocol.sparse import Mask, SparseVector, top_k

folder, library, out = (Path(argument) for argument in sys.argv[1:])
manifest = artifact.read(folder)
layout = manifest.layout
rng = np.random.default_rng(0)
examples = Examples(rng.standard_normal((160, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 160))
flat = artifact.weights((folder / artifact.INITIAL).read_bytes(), layout)
mask = Mask.of_model(top_k(rng.random(layout.num_prunable), layout.num_prunable // 10), layout)
runtime = open_runtime(PORTABLE, manifest, folder, library, threads=1)
training = Training(local_epochs=2, batch_size=16, learning_rate=0.02, momentum=0.9)
trainer = Trainer(manifest, runtime, examples, training, generator(0, "a", 1))
np.save(out, trainer.fit(SparseVector.of(flat, mask)).values)
print(installed_package(), trainer.loss)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_the_oldest_and_the_newest_runtime_train_alike(binaries, tmp_path):
    """The development environment has the oldest one that is supported, as its training build."""
    export_model("cnn", (1, 8, 8), 10, tmp_path / "artifact", library_path())
    found = []
    for python, folder in ((sys.executable, ROOT), (str(binaries / "python"), tmp_path)):
        out = tmp_path / f"{len(found)}.npy"
        command = [python, "-c", TRAIN, str(tmp_path / "artifact"), str(library_path()), str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT) if folder == ROOT else ""}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.append((done.stdout.split(), np.load(out)))
    (old, oldest), (new, newest) = found
    assert old[1].split("+")[0] == "1.19.2"
    assert new[1] != old[1]
    assert old[2] == new[2]
    np.testing.assert_array_equal(oldest, newest)


@pytest.mark.slow
@pytest.mark.alone
def test_a_client_without_torch_trains_on_the_stock_runtime(binaries, tmp_path, federate):
    pytest.importorskip("sklearn")
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
