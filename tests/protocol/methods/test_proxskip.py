from __future__ import annotations

import numpy as np
import pytest

from protocol.errors import ConfigError
from protocol.layout import PRUNABLE, STATISTIC, Layout
from protocol.method import CONTROL_SUM, TRAIN, Mean, Turn
from protocol.methods.fedavg import FedAvg
from protocol.methods.proxskip import ControlledStep, ProxSkip
from protocol.sparse import Mask, SparseVector
from tests.quadratic import Federation, Quadratic, federated_optimum, training


def some_quadratics(count: int = 5, size: int = 12, seed: int = 0) -> list[Quadratic]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        root = rng.standard_normal((size, size))
        made.append(Quadratic(root @ root.T / size + np.eye(size), 3 * rng.standard_normal(size)))
    return made


def sum_of_controls(federation: Federation) -> float:
    return float(np.abs(np.sum(federation.settled(), axis=0)).max())


def test_the_example_of_two_clients():
    """Gamma .1, p .5, xs_1 = [1,0], xs_2 = [0,3]: h_1 = 5 ([.5,1.5] - [1,0]) = [-2.5,7.5], h_2 = [2.5,-7.5]."""
    method, layout = (
        ProxSkip(variant="dense", communication_probability=0.5),
        Layout.of([("w", (2,), PRUNABLE)]),
    )
    turn = Turn(1, TRAIN, 0, training(0.1))
    clients = [Quadratic(np.zeros((2, 2)), np.zeros(2), layout) for _ in range(2)]
    memories: list[dict] = [{}, {}]
    start = [SparseVector(Mask.full(2), np.array(x, np.float32)) for x in ([1, 0], [0, 3])]
    for client, memory, x in zip(clients, memories, start, strict=True):  # A flat loss: x_i stays.
        method.client(turn, {"weights": x}, client, memory)
    mean = SparseVector(Mask.full(2), np.array([0.5, 1.5], np.float32))
    following = Turn(2, TRAIN, 0, training(0.1), averaged=1)
    for client, memory, expected in zip(clients, memories, ([-2.5, 7.5], [2.5, -7.5]), strict=True):
        assert method.inputs(following, memory) == ("weights", "mean")
        method.client(following, {"weights": mean, "mean": mean}, client, memory)
        np.testing.assert_array_equal(memory["control"], expected)


def test_pruning_at_the_server_breaks_the_sum_and_is_called_out():
    """Top 1 of [.5,1.5] is [0,1.5]: n p/gamma (TopK(xbar) - xbar) = 2 * 5 * [-.5, 0] = [-5, 0]."""
    layout = Layout.of([("w", (2,), PRUNABLE)])
    mean, turn = Mean(np.array([0.5, 1.5]), 2), Turn(1, TRAIN, 0, training(0.1))
    for variant, expected, is_alarm in (("server", [-5, 0], True), ("client", [0, 0], False)):
        method = ProxSkip(density=0.5, variant=variant, communication_probability=0.5, scope="global")
        current = method.aggregate(turn, method.begin(layout, np.zeros(2, np.float32)), mean, layout)
        np.testing.assert_allclose(current.state[CONTROL_SUM], expected, atol=1e-6)
        assert bool(method.alarm(current, layout)) is is_alarm


@pytest.mark.parametrize("variant", ["dense", "ste", "client", "local", "server-modified"])
@pytest.mark.parametrize("steps", ["fixed", "geometric"])
def test_the_control_variates_sum_to_zero_whoever_takes_part(variant, steps):
    method = ProxSkip(density=0.5, variant=variant, communication_probability=0.25, local_steps=steps)
    made = Federation(method, some_quadratics(), np.zeros(12), training(0.05))
    rng = np.random.default_rng(1)
    for _ in range(30):
        made.round(cohort=rng.choice(5, 3, replace=False))
        assert sum_of_controls(made) < 1e-4
        assert not method.alarm(made.current, made.layout)
    assert max(np.abs(h).max() for h in made.settled()) > 1.0  # They are not zero themselves.


def test_with_weights_the_weighted_sum_vanishes():
    examples = [1, 5, 2, 9, 4]
    method = ProxSkip(variant="client", density=0.5, weights="examples")
    made = Federation(method, some_quadratics(), np.zeros(12), training(0.05), examples)
    for cohort in ([0, 1, 2], [2, 3, 4], [0, 4], [1, 2, 3], [0, 1, 2, 3, 4]):
        made.round(cohort=cohort)
    weighted = sum(n * h for n, h in zip(examples, made.settled(), strict=True))
    assert np.abs(weighted).max() < 1e-3
    assert sum_of_controls(made) > 0.1


def test_lost_uploads_and_reboots_move_no_control_variate_twice_or_for_nothing():
    method = ProxSkip(density=0.5, variant="ste", communication_probability=0.25)
    made = Federation(method, some_quadratics(), np.zeros(12), training(0.05))
    rng = np.random.default_rng(2)
    for number in range(60):
        lost = [i for i in range(5) if rng.random() < 0.2]
        if number % 3 == 0:  # The client works, its memory is written, power fails, and it is asked again.
            bodies = method.broadcast(made.turn(), made.current, made.initial, made.layout)
            made.work(int(rng.integers(5)), bodies)
        made.round(lost=lost)
        assert sum_of_controls(made) < 1e-4
    assert np.linalg.norm(made.current.weights) > 1


def test_the_same_work_after_a_reboot_uploads_the_same_bits():
    made = Federation(
        ProxSkip(variant="client", density=0.5), some_quadratics(), np.zeros(12), training(0.05)
    )
    for _ in range(3):
        made.round()
    bodies = made.method.broadcast(made.turn(), made.current, made.initial, made.layout)
    first, second = made.work(0, bodies), made.work(0, bodies)
    assert first.values.tobytes() == second.values.tobytes()


def test_a_run_begun_anew_forgets_the_former_life():
    made = Federation(ProxSkip(variant="dense"), some_quadratics(), np.zeros(12), training(0.05))
    made.round()
    made.round()
    assert np.abs(made.memories[0]["control"]).max() > 0
    method, layout = made.method, made.layout
    start = method.broadcast(made.turn(), method.begin(layout, made.initial), made.initial, layout)
    method.client(Turn(1, TRAIN, 0, training(0.05)), start, made.clients[0], made.memories[0])
    np.testing.assert_array_equal(made.memories[0]["control"], 0.0)


def test_what_the_wire_rounds_is_what_control_variates_follow():
    made = Federation(
        ProxSkip(variant="client", density=0.5), some_quadratics(), np.zeros(12), training(0.05)
    )
    for client in made.clients:
        client.as_sent = lambda v: SparseVector(v.mask, np.round(v.values * 2) / 2)
    for _ in range(20):
        made.round()
        assert all(set(np.unique(u.values * 2 % 1)) <= {0.0} for u in made.uploads.values())
        assert sum_of_controls(made) < 1e-4


def test_with_p_1_a_round_is_one_step_of_central_gradient_descent():
    """Small integers and a step of 1/8: float32 is exact, so nothing may differ."""
    clients = [
        Quadratic(np.diag([1.0, 2, 4]), np.array([4.0, -8, 16])),
        Quadratic(np.diag([3.0, 2, 0]), np.array([-4.0, 8, 8])),
    ]
    made = Federation(
        ProxSkip(variant="dense", communication_probability=1.0), clients, np.ones(3), training(0.125)
    )
    x = np.ones(3)
    for _ in range(4):
        made.round()
        x = x - 0.125 * np.mean([client.gradient_at(x) for client in clients], axis=0)
        np.testing.assert_array_equal(made.current.weights, x)


def test_at_the_optimum_a_round_changes_nothing():
    """f_1 pulls to +4 and f_2 to -4 with equal force: x* = 0, h_i = grad f_i(0) = -+4."""
    clients = [Quadratic(np.eye(2), [4.0, 4.0]), Quadratic(np.eye(2), [-4.0, -4.0])]
    made = Federation(ProxSkip(variant="dense"), clients, np.zeros(2), training(0.25))
    for memory, sign in zip(made.memories, (-4, 4), strict=True):
        memory["control"] = np.full(2, sign, np.float32)
    for _ in range(3):
        made.round()
        np.testing.assert_array_equal(made.current.weights, 0.0)
        np.testing.assert_array_equal(made.settled(), [[-4, -4], [4, 4]])


def test_it_reaches_the_optimum_in_sqrt_kappa_rounds_where_fedavg_stalls():
    rng = np.random.default_rng(3)
    kappa, size = 400, 20
    spectrum = np.geomspace(1 / kappa, 1.0, size)
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    clients = []
    for _ in range(8):
        own = spectrum * rng.uniform(0.5, 1.0, size)  # Clients disagree, or FedAvg would not drift.
        clients.append(Quadratic(basis @ np.diag(own) @ basis.T, rng.standard_normal(size)))
    total, best = sum(client.hessian for client in clients) / 8, federated_optimum(clients)

    def gap(x: np.ndarray) -> float:
        """Share of the initial loss above the optimum that is left."""
        return float((x - best) @ total @ (x - best)) / float(best @ total @ best)

    central, x = 0, np.zeros(size)  # Gradient descent, which communicates in every step.
    while gap(x) > 1e-6:
        x, central = x - total @ (x - best), central + 1
    p, rounds = 1 / np.sqrt(kappa), {}
    for method, epochs in (
        (ProxSkip(variant="dense", communication_probability=p), 1),
        (FedAvg(), round(1 / p)),
    ):
        made = Federation(method, clients, np.zeros(size), training(1.0, epochs))
        while gap(made.current.weights) > 1e-6 and made.number <= 300:
            made.round()
        rounds[method.name] = made.number - 1, gap(made.current.weights)
    assert rounds["proxskip"][0] < np.sqrt(kappa) * np.log(1e6)
    assert rounds["proxskip"][0] < central / 5
    assert rounds["fedavg"][0] == 300
    assert rounds["fedavg"][1] > 1e-3  # It has stopped elsewhere.


def test_ste_takes_gradients_at_the_pruned_model_and_moves_the_dense_one():
    method, layout = ProxSkip(density=0.5, scope="global"), Layout.of([("w", (4,), PRUNABLE)])
    step = ControlledStep(np.array([1, 0, 0, 0], np.float32), Mask.full(4), layout, method)
    v = np.array([0.1, -3, 2, 0.5], np.float32)
    np.testing.assert_array_equal(step.weights(v), [0, -3, 2, 0])
    np.testing.assert_array_equal(step.gradient(np.ones(4, np.float32), v), [0, 1, 1, 1])
    step.project(v)
    np.testing.assert_array_equal(v, np.array([0.1, -3, 2, 0.5], np.float32))
    local = ControlledStep(
        np.zeros(4, np.float32), Mask.full(4), layout, ProxSkip(density=0.5, variant="local")
    )
    local.project(v)
    np.testing.assert_array_equal(v, [0, -3, 2, 0])
    clipped = ControlledStep(
        np.zeros(2, np.float32), Mask.full(2), Layout.of([("w", (2,), PRUNABLE)]), ProxSkip(clip=1)
    )
    np.testing.assert_allclose(clipped.gradient(np.array([3, 4], np.float32), v[:2]), [0.6, 0.8])


@pytest.mark.parametrize("variant", ["ste", "client", "local"])
def test_uploads_and_the_result_have_k_weights(variant):
    made = Federation(ProxSkip(density=0.25, variant=variant), some_quadratics(), np.ones(12), training(0.05))
    for _ in range(3):
        made.round()
        assert {upload.mask.nnz for upload in made.uploads.values()} == {3}  # A quarter of 12.
    assert made.method.model(made.current, made.layout).mask.nnz == 3
    assert made.current.mask.nnz > 3  # The mean's support is the union: the way down is not K-sparse.


def test_statistics_are_averaged_and_have_no_control_variate():
    layout = Layout.of([("w", (2,), PRUNABLE), ("running_mean", (1,), STATISTIC)])

    class Moving(Quadratic):
        def fit(self, model, step=None, num_steps=None):
            step.gradient(np.ones(2, np.float32), model.values[:2])
            return SparseVector(model.mask, model.values + np.array([0, 0, 7], np.float32))

    client, memory = Moving(np.eye(3), np.zeros(3), layout), {}
    start = SparseVector(Mask.full(3), np.array([1, 2, 3], np.float32))
    method = ProxSkip(variant="dense")
    uploaded = method.client(Turn(1, TRAIN, 0, training()), {"weights": start}, client, memory)
    np.testing.assert_array_equal(uploaded.values, [1, 2, 10])
    assert memory["control"].shape == (2,)


def test_what_would_break_it_is_refused_before_the_run():
    ProxSkip().check(training(), "f32")
    with pytest.raises(ConfigError, match="f32"):
        ProxSkip().check(training(), "f16")
    from msgspec.structs import replace

    with pytest.raises(ConfigError, match="momentum"):
        ProxSkip().check(replace(training(), momentum=0.9), "f32")
