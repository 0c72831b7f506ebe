"""A federation with liars: two of ten clients send the negative of what they learned, alpha 0.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.experiment import CohortConfig, Experiment, WireConfig
from coordinator.report import read_csv
from coordinator.robust import AggregationConfig
from edge_client.daemon import Daemon
from edge_client.kernels import library_path
from export.export import export_model
from protocol.messages import Training
from protocol.sparse import SparseVector
from tools.simulate import simulate
from tools.split import split

CLIENTS, LIARS = 10, ("client-000", "client-001")


@pytest.mark.slow
def test_sign_flipping_clients_cost_less_than_five_points_with_a_robust_rule(fault, tmp_path, monkeypatch):
    row = fault(15)
    pytest.importorskip("sklearn")
    export_model("cnn", (1, 8, 8), 10, tmp_path / "artifact", library_path())
    split(source="digits", out=tmp_path / "data", clients=CLIENTS, how="dirichlet", alpha=0.1, seed=0)
    encode = Daemon._encode

    def flipped(self, task, method, vector, *rest, **named):
        if self._config.client_id in LIARS:
            vector = SparseVector(vector.mask, -vector.values)
        return encode(self, task, method, vector, *rest, **named)

    def accuracy(name: str, rule: str) -> float:
        made = Experiment(
            artifact=str(tmp_path / "artifact"),
            data=str(tmp_path / "data"),
            rounds=25,
            method={"name": "fedavg"},
            training=Training(local_epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9),
            cohort=CohortConfig(clients=CLIENTS, deadline_s=60, join_timeout_s=30),
            aggregation=AggregationConfig(rule=rule),
            wire=WireConfig("f16", "f16"),
        )
        clients: dict[str, Path] = {
            f"client-{n:03}": tmp_path / "data" / f"client-{n:03}.npz" for n in range(CLIENTS)
        }
        simulate(made, clients, tmp_path / name)
        rows = read_csv(tmp_path / name / "rounds.csv")
        row.trials += sum(int(line["updates"]) for line in rows)
        return float(rows[-1]["accuracy"])

    clean = accuracy("clean", "mean")
    monkeypatch.setattr(Daemon, "_encode", flipped)
    assert accuracy("mean", "mean") < clean - 0.3  # The contrast.
    for rule in ("trimmed", "clip"):
        assert accuracy(rule, rule) > clean - 0.05
