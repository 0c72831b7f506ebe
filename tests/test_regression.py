"""A regression, from export to the federation: mean squared error, real labels, no accuracy."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.evaluate import Evaluator
from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import read_csv
from edge_client.kernels import library_path
from edge_client.ort import MODULE, PORTABLE
from edge_client.runtime import open_runtime
from edge_client.session import Trainer
from export import parity
from export.export import export_module
from protocol import artifact as artifacts
from protocol.artifact import MSE
from protocol.errors import ArtifactError, DataError
from protocol.examples import load, of_each_class
from protocol.messages import Training
from protocol.sparse import SparseVector
from tools.simulate import simulate

KINDS = [PORTABLE]
if importlib.util.find_spec("onnxruntime.training") is not None:
    KINDS.append(MODULE)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    folder = tmp_path_factory.mktemp("regression") / "artifact"
    exported = export_module(module, "regression", (1, 6, 6), folder, library_path(), MSE)
    assert exported.worst_difference < 1e-4
    assert exported.manifest.loss == MSE
    flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), exported.manifest.layout)
    return folder, exported.manifest, module, flat


def data(rng, n: int):
    x = rng.standard_normal((n, 1, 6, 6)).astype(np.float32)
    y = np.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 0, 5, 5]], 1)
    return x, y


@pytest.mark.parametrize("kind", KINDS)
def test_both_runtimes_give_the_loss_and_gradients_of_pytorch(case, kind):
    folder, manifest, module, flat = case
    layout = manifest.layout
    runtime = open_runtime(kind, manifest, folder, library_path(), threads=1)
    mask = parity.random_mask(layout, 0.5, np.random.default_rng(0))
    runtime.bind(SparseVector.of(flat, mask))
    x, y = data(np.random.default_rng(1), 19)
    loss = runtime.step((x, y))

    with torch.no_grad():
        for name, view in layout.views(
            np.where(np.isin(np.arange(layout.size), mask.indices), flat, 0)
        ).items():
            module.get_parameter(name).copy_(torch.from_numpy(view.astype(np.float32)))
    module.zero_grad()
    expected = nn.functional.mse_loss(module(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    gradient = layout.flatten({p.name: module.get_parameter(p.name).grad.numpy() for p in layout.pieces})
    np.testing.assert_allclose(runtime.gradient, gradient[mask.indices], rtol=1e-3, atol=1e-6)


def test_training_lowers_the_error_and_the_coordinator_measures_it(case, tmp_path):
    folder, manifest, module, flat = case
    rng = np.random.default_rng(0)
    x, y = data(rng, 256)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    examples = load(tmp_path / "data.npz", (1, 6, 6), 3, is_regression=True)
    runtime = open_runtime(PORTABLE, manifest, folder, library_path(), threads=1)
    training = Training(local_epochs=20, batch_size=32, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    mask = parity.random_mask(manifest.layout, 0.5, rng)
    trained = Trainer(manifest, runtime, examples, training, rng).fit(SparseVector.of(flat, mask))
    weights = np.zeros_like(flat)
    weights[mask.indices] = trained.values

    evaluator = Evaluator(manifest, folder, examples.x, examples.y, threads=1)
    before, after = evaluator.scores(flat), evaluator.scores(weights)
    assert before.accuracy is None
    assert after.loss < 0.5 * before.loss
    with torch.no_grad():
        for name, view in manifest.layout.views(weights).items():
            module.get_parameter(name).copy_(torch.from_numpy(view))
        expected = nn.functional.mse_loss(module(torch.from_numpy(x)), torch.from_numpy(y))
    np.testing.assert_allclose(after.loss, expected.item(), rtol=1e-4)


def test_labels_of_a_regression_are_real_numbers_of_the_right_number(tmp_path):
    x = np.zeros((4, 1, 6, 6), np.float32)

    def loaded(y, num_values):
        np.savez(tmp_path / "data.npz", x=x, y=y)
        return load(tmp_path / "data.npz", (1, 6, 6), num_values, is_regression=True)

    assert loaded(np.arange(4), 1).y.tolist() == [[0.0], [1.0], [2.0], [3.0]]
    assert loaded(np.zeros((4, 3)), 3).y.dtype == np.float32
    for y, num_values, said in (
        (np.zeros((4, 2)), 3, r"expected numbers \[n, 3\]"),
        (np.zeros(4), 3, r"expected numbers \[n, 3\]"),
        (np.array(["a"] * 4), 1, r"expected numbers \[n, 1\]"),
        (np.array([0, 1, np.nan, 3]), 1, "y"),
        (np.zeros((3, 1)), 1, "4 examples, y has 3"),
    ):
        with pytest.raises(DataError, match=said):
            loaded(y, num_values)
    with pytest.raises(DataError, match="no classes"):
        of_each_class(loaded(np.zeros(4), 1), 2, np.random.default_rng(0))


def test_a_loss_of_another_version_is_refused(case):
    raw = case[1].raw.replace(b'"loss": "mse"', b'"loss": "hinge"')
    with pytest.raises(ArtifactError, match="hinge"):
        artifacts.parse(raw)
    assert artifacts.parse(case[1].raw.replace(b'"loss": "mse",', b"")).loss == artifacts.CROSS_ENTROPY


def test_a_federation_lowers_the_error(case, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("client-000", 128), ("client-001", 100), ("test", 64)):
        x, y = data(rng, n)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    made = Experiment(
        artifact=str(case[0]),
        data=str(tmp_path),
        rounds=3,
        method={"name": "fedavg"},
        training=Training(local_epochs=3, batch_size=32, learning_rate=0.1, momentum=0.9),
        cohort=CohortConfig(clients=2, deadline_s=60, join_timeout_s=30),
    )
    simulate(made, {f"client-00{n}": tmp_path / f"client-00{n}.npz" for n in (0, 1)}, tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["accuracy"] for row in rows] == [""] * len(rows)
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
