from __future__ import annotations

import numpy as np

from protocol.layout import PRUNABLE, Layout
from protocol.methods.fedpai_proxskip import FedPaIProxSkip
from protocol.sparse import Mask, SparseVector
from tests.quadratic import Federation, Quadratic, training


def test_all_that_moves_lies_on_one_mask_and_reaches_its_optimum():
    rng = np.random.default_rng(0)
    clients = [Quadratic(np.diag(rng.uniform(0.2, 1, 20)), rng.standard_normal(20)) for _ in range(4)]
    initial = rng.standard_normal(20)
    method = FedPaIProxSkip(density=0.25, communication_probability=0.2, score="snip")
    made = Federation(method, clients, initial, training(1.0))
    made.round()
    mask = made.current.mask
    assert mask.nnz == 5
    for number in range(120):
        made.round(lost=[1] if number % 7 == 0 else [])
        assert all(upload.mask.same(mask) for upload in made.uploads.values())
        assert made.current.mask.same(mask)
        assert not method.alarm(made.current, made.layout)
    assert all(memory["control"].shape == (5,) for memory in made.memories)
    kept = mask.indices
    total = sum(client.hessian for client in clients)[np.ix_(kept, kept)]
    pull = sum(client.hessian @ client.optimum for client in clients)[kept]
    np.testing.assert_allclose(made.current.weights[kept], np.linalg.solve(total, pull), atol=1e-4)
    assert made.method.model(made.current, made.layout).mask.same(mask)


def test_the_control_variates_of_the_mask_sum_to_zero():
    clients = [Quadratic(np.eye(8), np.full(8, x)) for x in (1.0, 2.0, 6.0)]
    made = Federation(
        FedPaIProxSkip(density=0.5, score="magnitude"), clients, np.arange(1, 9), training(0.05)
    )
    assert made.number == 1
    for cohort in ([0, 1], [1, 2], [0, 2], [0, 1, 2]):
        made.round(cohort)
        controls = np.zeros(8)
        for i, memory in enumerate(made.memories):
            if "control" not in memory:
                continue
            h = np.array(memory["control"], np.float64)
            if int(memory.get("pending_round", -1)) == made.averaged.get(i):
                sent = SparseVector(Mask(memory["pending.indices"], 8), memory["pending.values"])
                h += memory["pending.scale"] * (made.means[made.averaged[i]].values - sent.values)
            controls[made.current.mask.indices] += h
        np.testing.assert_allclose(controls, 0, atol=1e-4)


def test_a_layer_that_the_mask_has_emptied_is_an_alarm():
    layout = Layout.of([("first", (10,), PRUNABLE), ("second", (90,), PRUNABLE)])
    method = FedPaIProxSkip(density=0.1, score="magnitude")
    assert "no weight is left in first" in method.alarm(
        method.begin(layout, np.arange(100, dtype=np.float32)), layout
    )
    alternating = np.where(np.arange(100) % 10 == 0, 2.0, 1.0).astype(np.float32)
    assert not method.alarm(method.begin(layout, alternating), layout)
