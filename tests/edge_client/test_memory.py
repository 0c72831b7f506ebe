"""What is planned is what is measured: the client's training in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.memory import PROCESS_BYTES, afford, plan
from protocol import artifact as artifacts
from protocol.errors import OutOfMemory

ROOT = Path(__file__).resolve().parents[2]

# Prints the peak, what was resident before the runtime was opened, and the number of stored weights.
CLIENT = """
import json, sys
from pathlib import Path
import numpy as np
from device_profiles.memory import peak_rss_bytes
from edge_client import daemon  # All that a client loads.
from edge_client.kernels import library_path
from edge_client.ort import PORTABLE, onnxruntime
from edge_client.runtime import open_runtime
from edge_client.session import Trainer
from edge_client.trust import Trust
from protocol import artifact as artifacts
from protocol.examples import Examples
from protocol.layout import PRUNABLE
from protocol.messages import Training
from protocol.sparse import Mask, SparseVector

folder, batch, density = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
rng = np.random.default_rng(0)
Trust.at(Path(sys.argv[4]), 1)
onnxruntime()  # Imported when it is first needed.
before = peak_rss_bytes()
runtime = open_runtime(PORTABLE, manifest, folder, library_path(), threads=1)
stored = []
for piece in manifest.layout.pieces:
    step = round(1 / density) if piece.role == PRUNABLE else 1
    stored.append(np.arange(piece.offset, piece.end, step, dtype=np.int32))
mask = Mask(np.concatenate(stored), manifest.layout.size)
del stored
values = np.full(mask.nnz, 0.01, np.float32)
x = rng.standard_normal((batch, *manifest.input_shape), dtype=np.float32)
examples = Examples(x, np.arange(batch) % manifest.num_classes)
training = Training(local_epochs=3, batch_size=batch, learning_rate=1e-3, momentum=0.9)
Trainer(manifest, runtime, examples, training, rng).fit(SparseVector(mask, values))
print(json.dumps({"peak": peak_rss_bytes(), "before": before, "nnz": mask.nnz}))
"""


@pytest.mark.parametrize(
    ("model", "batch", "density"),
    [
        ("lenet", 64, 0.02),
        pytest.param("lenet", 250, 1.0, marks=pytest.mark.slow),
        pytest.param("cnn", 64, 0.1, marks=pytest.mark.slow),
        pytest.param("cnn", 250, 0.1, marks=pytest.mark.slow),
        pytest.param("resnet8", 16, 0.02, marks=pytest.mark.slow),
        pytest.param("resnet8", 40, 1.0, marks=pytest.mark.slow),
        pytest.param("resnet18", 16, 0.02, marks=pytest.mark.slow),
        pytest.param("resnet18", 16, 0.5, marks=pytest.mark.slow),
    ],
)
def test_the_plan_is_the_measured_peak(model, batch, density, artifact, tmp_path):
    folder = artifact(model)
    command = [sys.executable, "-c", CLIENT, str(folder), str(batch), str(density), str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
    planned = plan(manifest, found["nnz"], batch, num_examples=batch)
    assert planned is not None
    # Less the process, or the small models would show nothing.
    growth, expected = found["peak"] - found["before"], planned.peak_bytes - PROCESS_BYTES
    assert 0.95 * growth <= expected <= 1.15 * growth, (found, str(planned))
    assert 0.95 * found["peak"] <= planned.peak_bytes <= 1.15 * found["peak"]


def test_a_plan_grows_with_what_is_stored_and_with_every_block(artifact):
    folder = artifact("lenet")
    manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
    peak = {
        (nnz, batch): planned.peak_bytes
        for nnz in (1000, 60_000)
        for batch in (1, 16, 17, 256, 512)
        if (planned := plan(manifest, nnz, batch)) is not None
    }
    inputs = 4 * 28 * 28
    assert peak[1000, 1] == peak[1000, 16] - 15 * inputs  # One block of activations either way.
    assert peak[1000, 17] > peak[1000, 16] + inputs + 500_000
    assert peak[60_000, 16] - peak[1000, 16] == 59_000 * 53
    activations = manifest.memory[artifacts.STEP].activations
    assert activations(512) == 2 * activations(256)


def test_what_dense_layers_need_while_they_run_counts_where_they_may_be_dense(artifact):
    manifest = artifacts.read(artifact("resnet8"))  # 256 channels at its widest.
    scratch = []
    for density in (0.1, 0.5, 1.0):
        planned = plan(manifest, round(density * manifest.layout.size), 16)
        assert planned is not None
        scratch.append(planned.scratch_bytes)
    assert scratch[0] == 0 < scratch[1] == scratch[2] < 15e6


def test_an_artifact_without_figures_is_not_refused(artifact):
    folder = artifact("lenet")
    fields = json.loads((folder / artifacts.MANIFEST).read_bytes())
    del fields["memory"], fields["format"]
    manifest = artifacts.parse(artifacts.dump(fields))
    assert plan(manifest, 1000, 16) is None
    afford(None, 0)


def test_what_does_not_fit_is_refused_with_its_parts(artifact):
    folder = artifact("lenet")
    manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
    planned = plan(manifest, 1000, 16)
    assert planned is not None
    afford(planned, planned.peak_bytes)
    with pytest.raises(OutOfMemory, match=r"MB \(process 80, .*budget of .* MB: .*memory_budget_mb"):
        afford(planned, planned.peak_bytes - 1)


def test_a_method_that_holds_more_plans_more(artifact):
    manifest = artifacts.read(artifact("cnn"))
    plain, more = (plan(manifest, 1000, 16, method_floats=floats) for floats in (0, 5))
    assert plain is not None
    assert more is not None
    assert more.peak_bytes - plain.peak_bytes == 4 * 5 * 1000
