from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.kernels import library_path
from edge_client.ort import PORTABLE
from edge_client.runtime import open_runtime
from edge_client.session import Trainer
from export import parity
from export.models import builder
from protocol import artifact as artifacts
from protocol.examples import Examples, batches, num_batches
from protocol.layout import STATISTIC
from protocol.messages import Training
from protocol.method import LocalStep
from protocol.seeded import generator
from protocol.sparse import Mask, SparseVector

TRAINING = Training(local_epochs=2, batch_size=16, learning_rate=0.02, momentum=0.9, weight_decay=1e-3)


@pytest.fixture
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.standard_normal((160, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 160))


def trainer(
    folder,
    examples: Examples,
    training: Training = TRAINING,
    seed: int = 0,
    threads: int = 1,
    most_steps: int = 0,
):
    manifest = artifacts.read(folder)
    runtime = open_runtime(PORTABLE, manifest, folder, library_path(), threads)
    rng = generator(seed, "a", 1)
    made = Trainer(manifest, runtime, examples, training, rng, most_steps=most_steps)
    flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), manifest.layout)
    return made, manifest.layout, flat


def test_twenty_steps_follow_masked_pytorch(artifact, examples):
    """torch.optim.SGD with weights and gradients multiplied by the mask, batch norm included."""
    made, layout, flat = trainer(artifact("cnn"), examples)
    mask = parity.random_mask(layout, 0.3, np.random.default_rng(3))
    ours = made.fit(SparseVector.of(flat, mask)).dense()
    assert made.num_steps == 20
    assert made.num_examples == TRAINING.local_epochs * len(examples)

    module = builder("cnn")((1, 8, 8), 10).train()
    state, kept = module.state_dict(), layout.views(SparseVector(mask, np.ones(mask.nnz, np.float32)).dense())
    with torch.no_grad():
        for name, view in layout.views(SparseVector.of(flat, mask).dense()).items():
            state[name].copy_(torch.from_numpy(view.copy()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    rng = generator(0, "a", 1)
    for _ in range(2):
        for x, y in batches(examples, 16, rng):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            for name, parameter in module.named_parameters():
                parameter.grad *= torch.from_numpy(kept[name].copy())
            optimizer.step()
    theirs = layout.flatten({name: state[name].numpy() for name in layout.by_name})
    assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs)
    for piece in layout.pieces:  # A bias is small beside the float32 rounding that twenty steps amplify.
        a, b = ours[piece.part], theirs[piece.part]
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b), piece.name
    outside = np.setdiff1d(np.arange(layout.size), mask.indices)
    assert not ours[outside].any()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(artifact, examples):
    results = []
    for seed in (0, 0, 1):
        made, layout, flat = trainer(artifact("cnn"), examples, seed=seed)
        results.append(made.fit(SparseVector.of(flat, Mask.full(layout.size))).values.tobytes())
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_training_gives_the_same_bits_for_any_number_of_threads(artifact, examples):
    results = set()
    for threads in (1, 2, 3, 5, 8):
        made, layout, flat = trainer(artifact("cnn"), examples, threads=threads)
        mask = parity.random_mask(layout, 0.3, np.random.default_rng(3))
        results.add(made.fit(SparseVector.of(flat, mask)).values.tobytes())
    assert len(results) == 1


class Recorder(LocalStep):
    """Runs on half of the weights, turns gradients around once, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def weights(self, v):
        self.calls.append("weights")
        return v / 2

    def gradient(self, g, v):
        self.calls.append("gradient")
        return -g

    def project(self, v):
        self.calls.append("project")
        v[0] = 0.25


def test_a_method_changes_the_steps_of_sgd(artifact, examples):
    plain = Training(local_epochs=2, batch_size=16, learning_rate=0.02)
    made, layout, flat = trainer(artifact("mlp"), mnist(), plain)
    same = made.fit(SparseVector.of(flat, Mask.full(layout.size)), LocalStep())
    other, _, _ = trainer(artifact("mlp"), mnist(), plain)
    assert same.values.tobytes() == other.fit(SparseVector.of(flat, Mask.full(layout.size))).values.tobytes()

    step, (made, _, _) = Recorder(), trainer(artifact("mlp"), mnist(), plain)
    v = made.fit(SparseVector.of(flat, Mask.full(layout.size)), step, num_steps=1).values
    assert step.calls == ["weights", "gradient", "project"]
    assert made.num_steps == 1
    reference, _, _ = trainer(artifact("mlp"), mnist(), plain)
    batch = next(batches(mnist(), 16, generator(0, "a", 1)))
    g = reference.gradient(SparseVector(Mask.full(layout.size), flat / 2), batch)
    np.testing.assert_allclose(v[1:], (flat + np.float32(0.02) * g)[1:], atol=1e-6)
    assert v[0] == 0.25


def test_steps_go_on_over_epochs(artifact):
    made, layout, flat = trainer(artifact("mlp"), mnist(33))  # 16 + 16, and one example that is left out.
    assert made.steps_per_epoch == 2
    made.fit(SparseVector.of(flat, Mask.full(layout.size)), num_steps=5)
    assert made.num_steps == 5
    assert [num_batches(n, 16) for n in (1, 15, 16, 17, 18, 32, 33)] == [1, 1, 1, 1, 2, 2, 2]
    assert num_batches(3, 1) == 3


def test_a_task_may_ask_for_fewer_steps_than_its_epochs_have(artifact, examples):
    made, layout, flat = trainer(artifact("cnn"), examples)
    whole = made.fit(SparseVector.of(flat, Mask.full(layout.size)))
    spared, *_ = trainer(artifact("cnn"), examples, most_steps=7)
    short = spared.fit(SparseVector.of(flat, Mask.full(layout.size)))
    assert (made.num_steps, spared.num_steps) == (20, 7)
    assert spared.num_examples < made.num_examples
    assert not np.array_equal(short.values, whole.values)
    spared.fit(short, num_steps=3)
    assert spared.num_steps == 7 + 3


def test_the_loss_of_a_model_is_the_mean_over_its_examples(artifact):
    made, layout, flat = trainer(artifact("mlp"), mnist(40))
    given = made.loss_of(SparseVector.of(flat, Mask.full(layout.size)))
    whole, _, _ = trainer(artifact("mlp"), mnist(40), Training(1, 64, 0.1))
    assert given == pytest.approx(whole.loss_of(SparseVector.of(flat, Mask.full(layout.size))), rel=1e-5)


def mnist(count: int = 160) -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.standard_normal((count, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, count))


def test_a_gradient_says_nothing_about_statistics(artifact, examples):
    made, layout, flat = trainer(artifact("cnn"), examples)
    (batch, *_) = made.scoring_batches(2)
    gradient = made.gradient(SparseVector.of(flat, Mask.full(layout.size)), batch)
    assert not any(gradient[piece.part].any() for piece in layout.of_role(STATISTIC))
    assert np.abs(gradient[: layout.num_trainable]).max() > 0


def test_scoring_batches_hold_so_many_of_each_class(artifact, examples):
    made, _, _ = trainer(artifact("cnn"), examples)
    labels = np.concatenate([y for _, y in made.scoring_batches(3)])
    assert (np.bincount(labels, minlength=10) == 3).all()


def test_a_loss_that_explodes_is_an_error_with_its_cure(artifact, examples):
    training = Training(local_epochs=5, batch_size=16, learning_rate=100.0, momentum=0.99)
    huge = Examples(examples.x * np.float32(1e30), examples.y)
    made, layout, flat = trainer(artifact("cnn"), huge, training)
    with pytest.raises(Exception, match="learning rate"):
        made.fit(SparseVector.of(flat, Mask.full(layout.size)))
