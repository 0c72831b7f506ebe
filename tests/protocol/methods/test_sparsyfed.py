from __future__ import annotations

import itertools

import numpy as np
import pytest

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.method import TRAIN, Global, Turn
from protocol.methods import build
from protocol.methods.sparsyfed import Powerpropagation, SparsyFed, power
from protocol.methods.topk import TopK
from protocol.sparse import Mask, SparseVector, num_kept
from tests.quadratic import Federation, Quadratic, training

SIZE = 40
LAYOUT = Layout.of([("a.weight", (4, 5), PRUNABLE), ("b.weight", (2, 10), PRUNABLE), ("b.bias", (2,), DENSE)])
LITERAL = {"floor": 0.0, "activation_pruning": False}


def clients(count: int = 4, seed: int = 0) -> list[Quadratic]:
    rng = np.random.default_rng(seed)
    return [Quadratic(np.eye(42), rng.standard_normal(42), LAYOUT) for _ in range(count)]


def federation(method: TopK, seed: int = 0) -> Federation:
    initial = np.random.default_rng(seed + 100).standard_normal(42)
    return Federation(method, clients(seed=seed), initial, training(0.2, 3), [1, 2, 3, 4])


def supp(current: Global) -> set[int]:
    return set(current.mask.below(SIZE).indices.tolist())


def test_forward_and_gradient_of_powerpropagation():
    v = np.array([-0.5, 0, 0.25], np.float32)
    step = Powerpropagation(1.25, 3)
    np.testing.assert_allclose(step.weights(v), [-0.42045, 0, 0.17678], atol=1e-5)
    np.testing.assert_allclose(step.gradient(np.ones(3, np.float32), v), [1.05112, 0, 0.88388], atol=1e-5)
    two = Powerpropagation(2.0, 1)  # The second entry is a bias.
    np.testing.assert_array_equal(two.weights(v[:2] + 1), [0.25, 1])
    np.testing.assert_array_equal(two.gradient(np.ones(2, np.float32), v[:2] + 1), [1, 1])


@pytest.mark.parametrize("beta", [1.1, 1.25, 2.0])
def test_the_initial_model_is_theta_of_the_initial_v(beta):
    u = np.random.default_rng(0).standard_normal(42).astype(np.float32)
    method = SparsyFed(0.5, beta=beta)
    start = method.begin(LAYOUT, u)
    np.testing.assert_allclose(method.model(start, LAYOUT).weights, u, rtol=1e-6)
    np.testing.assert_array_equal(start.weights[SIZE:], u[SIZE:])


def test_zeros_stay_where_a_stored_zero_would_too():
    """What is not stored cannot grow; and beta > 1 gives a stored zero no gradient either."""
    v = np.array([0.0, 0.0, 0.5], np.float32)
    assert (Powerpropagation(1.25, 3).gradient(np.ones(3, np.float32), v)[:2] == 0).all()
    made = federation(SparsyFed(0.3, **LITERAL))
    made.round()
    before = supp(made.current)
    made.round()
    for upload in made.uploads.values():
        assert set(upload.mask.below(SIZE).indices.tolist()) <= before


def test_support_shrinks_to_the_target_and_uploads_have_k_weights():
    made = federation(SparsyFed(0.3, **LITERAL))
    supports = []
    for _ in range(25):
        made.round()
        supports.append(supp(made.current))
        # 40 - round(0.7 * 40) = 12
        assert (
            {upload.mask.below(SIZE).nnz for upload in made.uploads.values()} == {num_kept(0.3, SIZE)} == {12}
        )
    assert all(later <= earlier for earlier, later in itertools.pairwise(supports))
    topk = federation(TopK(0.3, floor=0.0))
    grown = 0
    for _ in range(25):
        before = supp(topk.current)
        topk.round()
        grown += len(supp(topk.current) - before)
    assert grown > 0  # Top-K's masks come back; SparsyFed's agree.
    assert len(supports[-1]) < len(supp(topk.current))


def test_the_mean_is_weighted_and_dense_parts_are_averaged():
    made = federation(SparsyFed(0.3, **LITERAL))
    made.round()
    expected = sum(n * made.uploads[i].dense() for i, n in enumerate([1, 2, 3, 4])) / 10
    np.testing.assert_allclose(made.current.weights, expected, rtol=1e-6)
    assert made.current.mask.density <= sum(u.mask.density for u in made.uploads.values())
    union = set().union(*(set(u.mask.indices.tolist()) for u in made.uploads.values()))
    assert set(made.current.mask.indices.tolist()) == union


def test_saved_inputs_keep_the_share_of_weights_and_nothing_is_pruned_while_dense():
    seen = []

    class Watching(Quadratic):
        def fit(self, model, step=None, num_steps=None):
            seen.append(dict(step.activations))
            return super().fit(model, step, num_steps)

    made = Federation(
        SparsyFed(0.3), [Watching(np.eye(42), np.ones(42), LAYOUT)], np.arange(1, 43) / 42, training(0.1)
    )
    made.round()
    made.round()
    assert seen[0] == {}
    kept = {"a.weight": np.sum(made.uploads[0].mask.indices < 20) / 20, "b.weight": 0.0}
    assert seen[1]["a.weight"] == pytest.approx(kept["a.weight"])
    assert SparsyFed(0.3).prunes_activations
    assert not SparsyFed(0.3, **LITERAL).prunes_activations


def test_small_models_have_a_floor_and_an_empty_layer_raises_an_alarm():
    """Layer a is a tenth of b: without a floor it is gone in round 1."""
    initial = np.concatenate([np.full(20, 0.1), np.linspace(1, 2, 22)])
    flat = [Quadratic(np.zeros((42, 42)), np.zeros(42), LAYOUT)]
    for floor, is_alarm, stays in ((0.0, True, 0), (None, False, 3)):  # 20 - round(0.85 * 20) = 3
        made = Federation(SparsyFed(0.3, floor=floor, activation_pruning=False), flat, initial, training())
        made.round()
        assert sum(i < 20 for i in supp(made.current)) == stays
        assert len(supp(made.current)) == 12
        assert bool(made.method.alarm(made.current, LAYOUT)) is is_alarm
    assert "a.weight" in SparsyFed(0.3).alarm(Global(initial, Mask.of_model([25], LAYOUT)), LAYOUT)


def test_the_ramp_falls_from_dense_to_the_target():
    method = SparsyFed(0.1, ramp_rounds=20)
    found = [method.density_in(number) for number in (0, 10, 20, 30)]
    np.testing.assert_allclose(found, [1.0, 0.1 + 0.9 / 8, 0.1, 0.1])
    assert SparsyFed(0.1).density_in(1) == 0.1


def test_regrowth_tries_the_same_weights_everywhere():
    made = federation(SparsyFed(0.25, regrowth=0.2, **LITERAL))
    made.round()
    v = made.current.vector
    turn = Turn(7, TRAIN, 3, training())
    one, two = (made.method.regrown(v, turn, LAYOUT) for _ in range(2))
    assert one.values.tobytes() == two.values.tobytes()
    prunable = v.mask.below(SIZE).nnz
    assert one.mask.nnz - v.mask.nnz == round(0.2 * prunable)
    new = np.setdiff1d(one.mask.indices, v.mask.indices)
    smallest = np.abs(v.values[:prunable]).min()
    np.testing.assert_array_equal(np.abs(one.dense()[new]), smallest)
    other = made.method.regrown(v, Turn(8, TRAIN, 3, training()), LAYOUT)
    assert not other.mask.same(one.mask)
    before, grown = supp(made.current), 0
    for _ in range(10):
        made.round()
        grown += len(supp(made.current) - before)
        before = supp(made.current)
    assert grown > 0  # Without regrowth it is 0: the support only shrinks.


def test_the_spectral_exponent_of_a_layer():
    """W = [[1,1],[1,1]] has sigma 2 and mean 1: exponent 1.5, exact after one iteration."""
    layout = Layout.of([("w", (2, 2), PRUNABLE), ("empty", (1, 2), PRUNABLE)])
    v = SparseVector(Mask(np.arange(4), 6), np.array([1, -1, 1, 1], np.float32))
    np.testing.assert_allclose(SparsyFed(0.5, beta="spectral").exponents(v, layout), [1.5] * 4)
    np.testing.assert_allclose(power(np.array([-4.0], np.float32), 1.5), [-8.0])
    assert build("sparsyfed", {"density": 0.1, "beta": "spectral"}).beta == "spectral"


def test_the_first_model_is_the_initial_one_as_it_was_drawn():
    made = federation(SparsyFed(0.3, **LITERAL))
    (first,) = made.method.broadcast(made.turn(), made.current, made.initial, LAYOUT).items()
    assert first[0] == "initial"
    np.testing.assert_array_equal(first[1].values, made.initial)
    made.round()
    # The pass began at theta(v) = the initial model.
    np.testing.assert_allclose(made.clients[0].seen[0], made.initial, rtol=1e-6)
    assert list(made.method.broadcast(made.turn(), made.current, made.initial, LAYOUT)) == ["weights"]
