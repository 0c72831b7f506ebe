from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from coordinator.aggregate import Accumulator
from protocol.errors import ConfigError
from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.messages import Training
from protocol.method import TRAIN, Mean, Turn
from protocol.methods import build
from protocol.methods.fedpai import SCORE, FedPaI
from protocol.saliency import snip, without_data
from protocol.sparse import Mask, SparseVector, top_k


def turn(stage: str = TRAIN) -> Turn:
    number = 0 if stage == SCORE else 1
    return Turn(number, stage, 0, Training(local_epochs=1, batch_size=1, learning_rate=0.1))


class Quadratic:
    """Local training on the loss 1/2 w' A w with a known Hessian A; the last weight is a bias."""

    def __init__(self, hessian: np.ndarray, num_batches: int = 1) -> None:
        self.hessian, self.num_batches = hessian, num_batches
        size = len(hessian)
        self.layout = Layout.of([("w", (size - 1,), PRUNABLE), ("b", (1,), DENSE)])
        self.calls = 0

    def scoring_batches(self, per_class: int) -> Sequence[object]:
        return [None] * self.num_batches

    def gradient(self, model: SparseVector, batch: object, temperature: float = 1.0) -> np.ndarray:
        self.calls += 1
        return (self.hessian @ model.dense().astype(np.float64))[model.mask.indices].astype(np.float32)

    def fit(self, model: SparseVector, step: object = None, num_steps: int | None = None) -> SparseVector:
        return SparseVector(model.mask, model.values + 1)


def a_hessian(size: int, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((size, size))
    return root @ root.T / size


def weights(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_scores_are_theta_times_hessian_times_gradient(num_batches):
    local = Quadratic(a_hessian(21), num_batches)
    theta = weights(21)
    found = FedPaI(0.5).scores(SparseVector(Mask.full(21), theta), local.scoring_batches(1), local)
    # The gradient is A w; only prunable weights move, so the Hessian acts on their part alone.
    gradient = (local.hessian @ theta)[:20]
    exact = theta[:20] * (local.hessian[:20, :20] @ gradient)
    exact /= np.sqrt(np.mean(exact**2))
    # A step of 1e-6 of the weights leaves float32 three or four digits of the difference.
    np.testing.assert_allclose(found, exact, atol=0.2)
    assert np.corrcoef(found, exact)[0, 1] > 0.99  # The sign decides which weights go.
    kept, best = set(top_k(found, 5).tolist()), set(top_k(exact, 5).tolist())
    assert len(kept & best) >= 4


def test_a_flat_loss_scores_nothing_instead_of_dividing_by_zero():
    local = Quadratic(np.zeros((4, 4)))
    scores = FedPaI(0.5).scores(SparseVector(Mask.full(4), weights(4)), [None], local)
    np.testing.assert_array_equal(scores, 0.0)


TWO_LAYERS = Layout.of([("first", (10,), PRUNABLE), ("second", (90,), PRUNABLE), ("b", (1,), DENSE)])


@pytest.mark.parametrize(
    ("floor", "kept", "words"),
    [(0.0, (0, 20), "no weight is left in first"), (None, (1, 19), ""), (1.0, (2, 18), "")],
)
def test_a_floor_keeps_layers_alive_and_an_emptied_one_is_an_alarm(floor, kept, words):
    method, initial = FedPaI(0.2, floor=floor), weights(101)
    scores = np.arange(100.0)  # The first layer has the least.
    current = method.begin(TWO_LAYERS, initial)
    following = method.aggregate(turn(SCORE), current, Mean(scores, 2), TWO_LAYERS)
    places = following.mask.below(100).indices
    assert ((places < 10).sum(), (places >= 10).sum()) == kept
    assert method.alarm(following, TWO_LAYERS).startswith(words)
    assert bool(method.alarm(following, TWO_LAYERS)) is bool(words)
    personal = FedPaI(0.2, floor=floor, masks="personal").places(scores, TWO_LAYERS)
    np.testing.assert_array_equal(personal, places)


def test_parts_of_the_mask_lie_in_each_other_and_keep_each_layer_alive():
    method = FedPaI(0.4)
    scores = np.random.default_rng(3).permutation(100).astype(np.float64)
    current = method.aggregate(
        turn(SCORE), method.begin(TWO_LAYERS, weights(101)), Mean(scores, 2), TWO_LAYERS
    )
    larger = current.mask
    for share, kept in ((0.5, 20), (0.25, 10), (0.125, 5)):
        part = method.nested(current, share, TWO_LAYERS)
        places = part.below(100).indices
        assert places.size == kept
        assert set(part.indices) <= set(larger.indices)
        assert 100 in part.indices
        assert (places < 10).any()
        left = np.setdiff1d(current.mask.below(100).indices, places)
        assert scores[places].mean() > scores[left].mean()
        larger = part


def test_a_weights_change_is_the_mean_of_those_that_trained_it():
    method, initial = FedPaI(0.4), np.zeros(6, np.float32)
    layout = Quadratic(np.eye(6)).layout
    current = method.aggregate(
        turn(SCORE), method.begin(layout, initial), Mean(np.array([5.0, 4, 3, 2, 1]), 1), layout
    )
    both, some = current.mask, method.nested(current, 0.5, layout)
    assert (both.indices.tolist(), some.indices.tolist()) == ([0, 1, 5], [0, 5])
    total = Accumulator(6, counts_coverage=True)
    total.fold(SparseVector(both, np.full(3, 1.0, np.float32)), 1)
    total.fold(SparseVector(some, np.full(2, 4.0, np.float32)), 2)
    following = method.aggregate(turn(), current, total.mean(), layout)
    np.testing.assert_allclose(following.weights, [3, 1, 0, 0, 0, 3])
    assert method.nested(following, 0.5, layout).digest == some.digest


def test_shared_masks_come_from_the_mean_score_and_store_what_is_never_pruned():
    method, layout = FedPaI(0.4), Quadratic(np.eye(6)).layout
    assert method.first_round == 0
    assert [method.stage(n) for n in (0, 1, 2)] == [SCORE, TRAIN, TRAIN]
    assert method.upload_size(turn(SCORE), layout) == (5, 5)
    initial = weights(6)
    current = method.begin(layout, initial)
    following = method.aggregate(turn(SCORE), current, Mean(np.array([0.1, 3.0, -5.0, 2.0, 0.0]), 2), layout)
    # 5 - round(0.6 * 5) = 2 weights, the largest scores and not the largest magnitudes, and the bias.
    assert following.mask.indices.tolist() == [1, 3, 5]
    np.testing.assert_array_equal(following.weights[[1, 3, 5]], initial[[1, 3, 5]])
    np.testing.assert_array_equal(following.weights[[0, 2, 4]], 0.0)
    assert [method.weight(turn(SCORE), 10), method.weight(turn(), 10)] == [1, 10]


def test_a_shared_client_uploads_what_changed_at_the_mask():
    local = Quadratic(np.eye(6))
    received = {"weights": SparseVector(Mask.of_model([1, 3], local.layout), np.array([2, 3, 4], np.float32))}
    uploaded = FedPaI(0.4).client(turn(), received, local, {})
    assert uploaded.mask.same(received["weights"].mask)
    np.testing.assert_array_equal(uploaded.values, [1, 1, 1])


def test_the_papers_example_of_personal_masks():
    """Masks [1,0], [0,1], [1,0] and weights [2,0], [0,3], [4,0]: mean [2,1]; the top 1 is [2,0]."""
    layout = Layout.of([("w", (2,), PRUNABLE)])
    method = FedPaI(0.5, masks="personal")
    assert method.first_round == 1
    assert method.weight(turn(), 100) == 1
    mean = np.mean([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]], axis=0)
    following = method.aggregate(turn(), method.begin(layout, weights(2)), Mean(mean, 3), layout)
    np.testing.assert_array_equal(following.weights, [2.0, 0.0])
    assert following.mask.indices.tolist() == [0]


def test_a_personal_mask_is_made_once_on_the_initial_weights_and_never_changes():
    local = Quadratic(a_hessian(21))
    method, memory = FedPaI(0.25, masks="personal"), {}
    initial = SparseVector(Mask.full(21), weights(21))
    assert method.inputs(turn(), memory) == ("weights", "initial")
    received = {"weights": SparseVector(Mask.full(21), weights(21, 9)), "initial": initial}
    first = method.client(turn(), received, local, memory)
    expected = top_k(method.scores(initial, [None], local), 5)  # 20 - round(0.75 * 20)
    np.testing.assert_array_equal(memory["mask"], expected)
    assert method.inputs(turn(), memory) == ("weights",)
    calls, kept = local.calls, memory["mask"].tobytes()
    second = method.client(turn(), {"weights": SparseVector(Mask.full(21), weights(21, 5))}, local, memory)
    assert local.calls == calls
    assert memory["mask"].tobytes() == kept
    for uploaded in (first, second):
        outside = np.setdiff1d(np.arange(20), expected)
        np.testing.assert_array_equal(uploaded.dense()[outside], 0.0)
    # Weights that the server dropped start at zero on the client's mask, and train: 0 + 1.
    narrow = SparseVector(Mask.of_model([], local.layout), np.array([7.0], np.float32))
    np.testing.assert_array_equal(
        method.client(turn(), {"weights": narrow}, local, memory).values, [1] * 5 + [8]
    )


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fedpie", {}, "known are fedavg, fedpai"),
        ("fedpai", {"density": 0.1, "mask": "shared"}, "did you mean 'masks'"),
        ("fedpai", {"density": 0.0}, "density"),
        ("fedpai", {"density": 0.1, "masks": "both"}, "masks"),
        ("fedpai", {}, "density"),
        ("fedavg", {"density": 0.1}, "has none"),
    ],
)
def test_a_wrong_setting_is_named(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        build(name, settings)


def test_the_ranking_does_not_depend_on_the_scale_of_the_loss():
    theta = SparseVector(Mask.full(21), weights(21))
    one, hundred = (
        FedPaI(0.5).scores(theta, [None], Quadratic(scale * a_hessian(21))) for scale in (1.0, 128.0)
    )
    np.testing.assert_array_equal(np.argsort(one), np.argsort(hundred))


def test_snip_is_the_weight_times_the_gradient():
    local, theta = Quadratic(a_hessian(21), num_batches=2), weights(21)
    found = snip(SparseVector(Mask.full(21), theta), local.scoring_batches(1), local)
    exact = np.abs(theta * (local.hessian @ theta))[:20]
    np.testing.assert_allclose(found, exact / np.sqrt(np.mean(exact**2)), rtol=1e-4)
    method = FedPaI(0.25, score="snip")
    assert method.first_round == 0
    model = {"weights": SparseVector(Mask.full(21), theta)}
    np.testing.assert_array_equal(method.client(turn(SCORE), model, local, {}).values, found)


@pytest.mark.parametrize("score", ["magnitude", "random", "synflow"])
def test_scores_without_data_need_no_round_of_scoring(score):
    method, initial = FedPaI(0.25, score=score), weights(21)
    layout = Layout.of([("w", (2, 10), PRUNABLE), ("b", (1,), DENSE)])
    assert method.first_round == 1
    start = method.begin(layout, initial)
    assert start.mask.below(20).nnz == 5
    assert start.mask.same(method.begin(layout, initial).mask)
    np.testing.assert_array_equal(start.weights[start.mask.indices], initial[start.mask.indices])
    if score == "magnitude":
        assert set(start.mask.below(20).indices) == set(np.argsort(-np.abs(initial[:20]))[:5])
    if score == "random":
        assert not start.mask.same(method.begin(layout, weights(21, 5)).mask)


def test_synflow_scores_are_torchs_gradient_of_the_outputs_sum():
    torch = pytest.importorskip("torch")
    from torch import nn

    from protocol.saliency import _path_sums

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
        nn.Linear(5, 3, bias=False),
    )
    layout = Layout.of([(name, tuple(p.shape), PRUNABLE) for name, p in net.named_parameters()])
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    net(torch.ones(1, 2, 8, 8)).sum().backward()
    exact = np.concatenate([(p * p.grad).detach().numpy().reshape(-1) for p in net.parameters()])
    alive = np.concatenate([p.detach().numpy().reshape(-1) for p in net.parameters()]).astype(np.float64)
    np.testing.assert_allclose(_path_sums(alive, layout), exact, rtol=1e-4)


def test_synflow_empties_no_layer_where_magnitude_does():
    layout = Layout.of([("a", (30, 400), PRUNABLE), ("b", (30, 30), PRUNABLE), ("c", (10, 30), PRUNABLE)])
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(p.shape) / np.sqrt(p.shape[1]) for p in layout.pieces]
    initial = np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)
    counts = {}
    for score in ("magnitude", "synflow"):
        found = without_data(score, layout, initial, 0.02)
        counts[score] = [np.sum((found >= p.offset) & (found < p.end)) for p in layout.pieces]
        assert sum(counts[score]) == 264  # 13,200 - round(.98 * 13,200)
    assert counts["magnitude"][0] == 0
    assert min(counts["synflow"]) > 0


def test_synflow_refuses_networks_with_branches():
    layout = Layout.of([("conv", (8, 3, 3, 3), PRUNABLE), ("shortcut", (8, 3, 1, 1), PRUNABLE)])
    with pytest.raises(ConfigError, match="shortcut takes 3 values where 8 come"):
        FedPaI(0.5, score="synflow").begin(layout, weights(layout.size))


def test_a_personal_mask_needs_personal_data():
    FedPaI(0.5, masks="personal", score="snip").check(turn().training, "f32")
    with pytest.raises(ConfigError, match="same for all clients"):
        FedPaI(0.5, masks="personal", score="random").check(turn().training, "f32")
