"""The lab's torch back-end computes what a device computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.experiment import CohortConfig, Experiment
from edge_client.kernels import library_path
from edge_client.ort import PORTABLE
from edge_client.runtime import COMPRESSED, open_runtime
from export.export import export_model, export_module
from export.models import DEFAULT_INPUT_SHAPE
from export.parity import random_mask
from protocol import artifact as artifacts
from protocol.errors import ArtifactError, RuntimeMissing
from protocol.layout import PRUNABLE
from protocol.messages import Training
from protocol.sparse import Mask, SparseVector, iou
from tools.cli import main
from tools.lab.torch_runtime import TorchRuntime, choose_device, torch_backend
from tools.simulate import simulate
from tools.split import split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str):
        if not (folder / name).exists():
            export_model(name, DEFAULT_INPUT_SHAPE[name], 10, folder / name, library_path())
        return folder / name

    return make


class Both:
    """A device's runtime and the lab's, on one artifact."""

    def __init__(self, folder) -> None:
        self.manifest = artifacts.read(folder)
        self.flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), self.manifest.layout)
        self.device = open_runtime(
            PORTABLE, self.manifest, folder, library_path(), threads=1, saved=COMPRESSED
        )
        self.torch = TorchRuntime(self.manifest, CPU)

    def bind(self, mask: Mask) -> None:
        for runtime in (self.device, self.torch):
            runtime.bind(SparseVector.of(self.flat, mask))

    def batch(self, size: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((size, *self.manifest.input_shape)).astype(np.float32)
        return x, np.arange(size) % 10

    def agree(self, mask: Mask, batch, temperature: float = 1.0) -> None:
        """Loss, and each tensor's gradient or statistics, to 1e-4."""
        device, torch_ = (runtime.step(batch, temperature) for runtime in (self.device, self.torch))
        assert torch_ == pytest.approx(device, rel=1e-5)
        for piece in self.manifest.layout.pieces:
            part = slice(*np.searchsorted(mask.indices, [piece.offset, piece.end]))
            ours, theirs = self.device.gradient[part], self.torch.gradient[part]
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(ours), piece.name


@pytest.mark.parametrize("model", ["lenet", "cnn"])
def test_loss_gradients_and_statistics_are_those_of_the_device(model, artifact):
    both = Both(artifact(model))
    rng = np.random.default_rng(1)
    for density, size, temperature in ((1.0, 33, 1.0), (0.1, 7, 200.0), (0.02, 16, 1.0), (1.0, 5, 1.0)):
        mask = random_mask(both.manifest.layout, density, rng)
        both.bind(mask)
        both.agree(mask, both.batch(size), temperature)


def test_weights_are_changed_in_place(artifact):
    both = Both(artifact("cnn"))
    mask = random_mask(both.manifest.layout, 0.3, np.random.default_rng(2))
    both.bind(mask)
    for runtime in (both.device, both.torch):
        runtime.values += 0.01
    both.agree(mask, both.batch(9))
    both.bind(mask)  # The same mask again: the model's own values.
    both.agree(mask, both.batch(9))


@pytest.mark.parametrize("model", ["lenet", "cnn"])
def test_weight_gradients_of_pruned_activations_are_those_of_the_device(model, artifact):
    both = Both(artifact(model))
    mask = random_mask(both.manifest.layout, 0.5, np.random.default_rng(3))
    both.bind(mask)
    batches = [both.batch(size, seed) for seed, size in enumerate((19, 32))]
    both.torch.step(batches[1])
    plain = both.torch.gradient.copy()
    for runtime in (both.device, both.torch):
        runtime.prune_saved({piece.name: 0.2 for piece in both.manifest.layout.of_role(PRUNABLE)})
    for batch in batches:  # In the second, convolutions keep the first one's threshold.
        both.agree(mask, batch)
    assert np.linalg.norm(plain - both.torch.gradient) > 0.1 * np.linalg.norm(plain)
    for runtime in (both.device, both.torch):
        runtime.prune_saved({})
    both.agree(mask, batches[1])
    np.testing.assert_array_equal(both.torch.gradient, plain)
    with pytest.raises(ArtifactError, match="nobody"):
        both.torch.prune_saved({"nobody.weight": 0.1})


def test_what_it_cannot_run_is_refused(tmp_path):
    made = tmp_path / "artifact"
    export_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "cnn", (1, 8, 8), made, library_path())
    with pytest.raises(ArtifactError, match="built-in model 'cnn' has no tensor"):
        TorchRuntime(artifacts.read(made), CPU)
    with pytest.raises(RuntimeMissing, match="cannot use 'nowhere'"):
        choose_device("nowhere")


@pytest.mark.parametrize(
    "method",
    [pytest.param({"name": "fedavg"}, marks=pytest.mark.slow), {"name": "sparsyfed", "density": 0.3}],
)
def test_a_federation_ends_in_the_devices_model(method, artifact, tmp_path):
    """Real clients, codec and coordinator around it: weights of two rounds differ by rounding alone."""
    split("digits", tmp_path / "data", clients=3, how="dirichlet", alpha=1.0, seed=0)
    files = {path.stem: path for path in sorted((tmp_path / "data").glob("client-*.npz"))}
    experiment = Experiment(
        artifact=str(artifact("cnn")),
        data=str(tmp_path / "data"),
        rounds=2,
        method=method,
        training=Training(local_epochs=1, batch_size=32, learning_rate=0.05),
        cohort=CohortConfig(clients=3, deadline_s=60.0),
    )
    device = simulate(experiment, files, tmp_path / "device")
    lab = simulate(experiment, files, tmp_path / "torch", backend=torch_backend(CPU))
    assert iou(device.mask, lab.mask) > 0.99  # Next to the threshold rounding decides.
    assert np.linalg.norm(lab.weights - device.weights) < 0.01 * np.linalg.norm(device.weights)
    assert "torch" in (tmp_path / "torch" / "events.jsonl").read_text()
    assert "torch" not in (tmp_path / "device" / "events.jsonl").read_text()


LAB = """
model = "cnn"
backend = "torch-{}"
rounds = 2
seeds = [0]
alphas = [1.0]
[data]
source = "digits"
clients = 3
[training]
local_epochs = 1
batch_size = 32
learning_rate = 0.05
[[rows]]
method = {{ name = "fedpai", density = 0.2 }}
"""


@pytest.mark.slow
def test_a_lab_computes_with_it_if_its_file_says_so(tmp_path, capsys):
    (tmp_path / "lab.toml").write_text(LAB.format("cpu"))
    assert main(["lab", str(tmp_path / "lab.toml"), "--out", str(tmp_path / "out"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["accuracy_mean"] > 0.3
    (events,) = (tmp_path / "out").glob("cells/*/events.jsonl")
    assert "torch" in events.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(tmp_path, capsys):
    (tmp_path / "lab.toml").write_text(LAB.format("cuda"))
    assert main(["lab", str(tmp_path / "lab.toml"), "--out", str(tmp_path / "out")]) != 0
    assert "cannot use 'cuda'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
