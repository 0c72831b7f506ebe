"""Whole federations over Loopback: the code of the real one, in one process."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from coordinator import offers
from coordinator.experiment import CohortConfig, Experiment, InitialConfig, ScheduleConfig, WireConfig
from coordinator.report import EVENTS, read_csv
from coordinator.service import Progress
from edge_client.config import ClientConfig
from edge_client.kernels import library_path
from edge_client.limits import LimitsConfig
from export.export import export_model
from protocol.artifact import MANIFEST, STEP
from protocol.messages import Setting, Training
from protocol.methods import METHODS
from tests.controls import sum_of_controls
from tools.simulate import simulate
from tools.split import split

CLIENTS = 4
DENSE: dict[str, Setting] = {"name": "fedavg"}
SHARED: dict[str, Setting] = {"name": "fedpai", "density": 0.1}
PROXSKIP: dict[str, Setting] = {"name": "proxskip", "density": 0.2, "variant": "client"}
SPARSYFED: dict[str, Setting] = {"name": "sparsyfed", "density": 0.1}
PERSONAL: dict[str, Setting] = {"name": "fedpai", "density": 0.2, "masks": "personal"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the small CNN, and the digits split among four clients."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("federation")
    export_model("cnn", (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=CLIENTS, how="dirichlet", alpha=1.0, seed=0)
    return folder


def experiment(home: Path, method: dict[str, Setting], rounds: int = 2, **changes: object) -> Experiment:
    made = Experiment(
        artifact=str(home / "artifact"),
        data=str(home / "data"),
        rounds=rounds,
        method=method,
        training=Training(local_epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9),
        cohort=CohortConfig(clients=CLIENTS, deadline_s=60, join_timeout_s=30),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def clients(home: Path) -> dict[str, Path]:
    return {f"client-{n:03}": home / "data" / f"client-{n:03}.npz" for n in range(CLIENTS)}


def final(home: Path, out: Path, made: Experiment) -> npt.NDArray[np.float32]:
    return simulate(made, clients(home), out).weights


def test_a_run_ends_with_the_error_of_a_client(home, tmp_path):
    def broken(*what):
        raise RuntimeError("the observer is broken")

    with pytest.raises(RuntimeError, match="the observer is broken"):
        simulate(experiment(home, DENSE), clients(home), tmp_path / "run", observe=broken)


PLAIN = Training(local_epochs=1, batch_size=32, learning_rate=0.05)


@pytest.mark.parametrize("method", [DENSE, SHARED, PERSONAL], ids=["dense", "shared", "personal"])
def test_the_same_seed_gives_the_same_bits(method, home, tmp_path):
    first = final(home, tmp_path / "a", experiment(home, method))
    second = final(home, tmp_path / "b", experiment(home, method))
    assert first.tobytes() == second.tobytes()


@pytest.mark.slow
def test_another_seed_gives_another_model(home, tmp_path):
    first = final(home, tmp_path / "a", experiment(home, SHARED))
    second = final(home, tmp_path / "b", experiment(home, SHARED, seed=1))
    assert first.tobytes() != second.tobytes()


def test_sparse_training_learns_and_stays_sparse(home, tmp_path):
    wire = WireConfig("f16", "f16")
    result = simulate(experiment(home, SHARED, rounds=8, wire=wire), clients(home), tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["stage"] for row in rows] == ["score"] + ["train"] * 8
    assert float(rows[-1]["accuracy"]) > 0.9  # Digits; chance is 0.1.
    measured = [
        row["phase"] for row in read_csv(tmp_path / "run" / "devices.csv") if row["client_id"] == "client-000"
    ]
    work = ["receive", "decode", "train", "encode", "upload"]
    assert [phase for phase in measured if phase != "idle"] == [
        "receive",
        "decode",
        "prune",
        *work[3:],
        *8 * work,
    ]
    assert measured.count("idle") == 9  # Before each task.
    # 65,824 prunable weights; 6,582 are 10 %.
    assert result.mask.below(65_824).nnz == 6_582
    outside = np.ones(result.mask.size, bool)
    outside[result.mask.indices] = False
    assert not result.weights[outside].any()


def test_a_fixed_mask_travels_once(home, tmp_path):
    simulate(
        experiment(home, SHARED, rounds=4, wire=WireConfig("f16", "f16")), clients(home), tmp_path / "run"
    )
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    # 6,582 values and 330 others: 13 kB of f16 and 1.3 kB of f32 for each client, and no indices.
    assert all(int(row["upload_bytes"]) < CLIENTS * 16_500 for row in rows[1:])
    assert int(rows[2]["download_bytes"]) < int(rows[1]["download_bytes"])  # The first brings the mask.


def test_four_bits_within_a_fixed_mask_still_learn(home, tmp_path):
    wire = WireConfig("int4", "int8", "f16")
    simulate(experiment(home, SHARED, rounds=8, wire=wire), clients(home), tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert float(rows[-1]["accuracy"]) > 0.85
    # 6,582 half bytes and 330 halves for each client.
    assert all(int(row["upload_bytes"]) < CLIENTS * 4_400 for row in rows[1:])


def test_control_variates_follow_from_what_a_rounding_wire_delivered(home, tmp_path):
    made = experiment(home, PROXSKIP, rounds=3, training=PLAIN, wire=WireConfig("int8", "f32"))
    simulate(made, clients(home), tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert all(float(row["control_sum"]) < 1e-4 for row in rows)


def test_a_moving_mask_travels_as_its_change(home, tmp_path, monkeypatch):
    made = experiment(home, SPARSYFED, rounds=4, wire=WireConfig("f16", "f16"))
    changes = simulate(made, clients(home), tmp_path / "changes")
    monkeypatch.setattr(offers, "WORTH_IT", 0.0)
    snapshots = simulate(made, clients(home), tmp_path / "snapshots")
    assert changes.weights.tobytes() == snapshots.weights.tobytes()
    down, full = (
        [int(row["download_bytes"]) for row in read_csv(tmp_path / name / "rounds.csv")]
        for name in ("changes", "snapshots")
    )
    assert all(few < 0.97 * many for few, many in zip(down[2:], full[2:], strict=True))


def test_partial_participation_asks_some_clients_each_round(home, tmp_path):
    cohort = CohortConfig(clients=CLIENTS, per_round=2, deadline_s=60, join_timeout_s=30)
    simulate(experiment(home, DENSE, rounds=4, cohort=cohort), clients(home), tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["updates"] for row in rows] == ["2"] * 4
    opened = [json.loads(line) for line in (tmp_path / "run" / EVENTS).read_text().splitlines()]
    cohorts = {tuple(line["cohort"]) for line in opened if line["event"] == "round-opened"}
    assert len(cohorts) > 1


def test_a_client_with_nan_in_its_data_is_left_out_and_named(home, tmp_path):
    bad = tmp_path / "bad.npz"
    with np.load(home / "data" / "client-000.npz") as good:
        x = good["x"].astype(np.float32)
        x.reshape(-1)[7] = np.nan
        np.savez(bad, x=x, y=good["y"])
    files = {**clients(home), "client-000": bad}
    simulate(experiment(home, DENSE), files, tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [(row["updates"], row["dropouts"]) for row in rows] == [("3", "1"), ("3", "1")]
    events = (tmp_path / "run" / EVENTS).read_text()
    assert "task-refused" in events
    assert "NaN" in events


def refusals(out: Path) -> set[str]:
    events = [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]
    return {event["reason"] for event in events if event["event"] == "task-refused"}


def test_a_task_beyond_the_devices_own_limits_is_refused_and_said(home, tmp_path, monkeypatch):
    limited = functools.partial(ClientConfig, limits=LimitsConfig(round_time_s=1e-9))
    monkeypatch.setattr("tools.simulate.ClientConfig", limited)
    simulate(experiment(home, DENSE, rounds=1), clients(home), tmp_path / "run")
    (reason,) = {text.partition("; ")[2] for text in refusals(tmp_path / "run")}
    assert reason == "this device allows limits.round_time_s = 1e-09"


def test_a_graph_that_is_more_than_arithmetic_is_refused_and_said(home, tmp_path):
    """Of a coordinator that was taken over: its manifest vouches for the graph."""
    artifact = tmp_path / "artifact"
    shutil.copytree(home / "artifact", artifact)
    model = onnx.load(str(artifact / STEP))
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=body))
    (artifact / STEP).write_bytes(model.SerializeToString())
    fields = json.loads((artifact / MANIFEST).read_text())
    fields["files"][STEP] = {
        "sha256": hashlib.sha256((artifact / STEP).read_bytes()).hexdigest(),
        "size": (artifact / STEP).stat().st_size,
    }
    (artifact / MANIFEST).write_text(json.dumps(fields))
    made = experiment(home, DENSE, rounds=1, artifact=str(artifact))
    simulate(made, clients(home), tmp_path / "run")
    assert refusals(tmp_path / "run") == {f"{STEP} is refused: a node has a graph of its own: control flow"}


@pytest.mark.slow
def test_control_variates_sum_to_zero_over_the_wire_with_rounded_uploads_and_absent_clients(home, tmp_path):
    cohort = CohortConfig(clients=CLIENTS, per_round=2, deadline_s=60, join_timeout_s=30)
    made = experiment(home, PROXSKIP, rounds=6, training=PLAIN, cohort=cohort, wire=WireConfig("f16", "f32"))
    simulate(made, clients(home), tmp_path / "run")
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["alarms"] for row in rows] == ["0"] * 6
    assert all(float(row["control_sum"]) < 1e-4 for row in rows)
    assert all(float(row["density"]) == pytest.approx(0.2, abs=1e-3) for row in rows)
    assert float(rows[-1]["union_density"]) > 0.2
    states = {client_id: tmp_path / "run" / "state" / client_id for client_id in clients(home)}
    total = sum_of_controls(tmp_path / "run", home / "artifact", states)
    assert np.abs(total).max() < 1e-4
    largest = []
    for folder in states.values():
        (path,) = folder.glob("memory-*.npz")
        with np.load(path) as memory:
            sent = memory["pending.values"][memory["pending.indices"] < 65_824]
            np.testing.assert_array_equal(sent, sent.astype(np.float16))  # What the coordinator decoded.
            largest.append(np.abs(memory["control"]).max())
    assert max(largest) > 1e-3  # Who took part once has its own pending still.


def test_a_client_that_lost_its_state_raises_an_alarm(home, tmp_path):
    def lose(progress: Progress) -> None:
        if progress.row is not None and progress.round_number == 2:
            (path,) = (tmp_path / "run" / "state" / "client-001").glob("memory-*.npz")
            path.unlink()

    simulate(experiment(home, PROXSKIP, rounds=4, training=PLAIN), clients(home), tmp_path / "run", lose)
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["alarms"] for row in rows] == ["0", "0", "1", "0"]
    events = [json.loads(line) for line in (tmp_path / "run" / EVENTS).read_text().splitlines()]
    (alarm,) = (event for event in events if event["event"] == "alarm")
    assert "client-001 follows round None, its last averaged round is 2" in alarm["reason"]


@pytest.mark.parametrize(
    "method",
    [
        DENSE,
        pytest.param(PERSONAL, marks=pytest.mark.slow),
        pytest.param(SPARSYFED, marks=pytest.mark.slow),
    ],
    ids=["dense", "personal", "sparsyfed"],
)
def test_the_initial_model_travels_as_a_seed(method, home, tmp_path):
    made = {
        source: experiment(home, method, initial=InitialConfig(source)) for source in ("artifact", "seed")
    }
    ends, down = {}, {}
    for source, one in made.items():
        ends[source] = final(home, tmp_path / source, one)
        rows = read_csv(tmp_path / source / "rounds.csv")
        assert [row["dropouts"] for row in rows] == ["0", "0"]
        down[source] = int(rows[0]["download_bytes"])
    assert down["artifact"] - down["seed"] > 3.3 * CLIENTS * 66_474  # Four bytes each, less what zstd saves.
    assert ends["artifact"].tobytes() != ends["seed"].tobytes()


@pytest.mark.slow
def test_a_falling_learning_rate_reaches_the_clients(home, tmp_path):
    flat = final(home, tmp_path / "a", experiment(home, DENSE))
    falling = final(home, tmp_path / "b", experiment(home, DENSE, schedule=ScheduleConfig(1e-6)))
    first = final(home, tmp_path / "c", experiment(home, DENSE, rounds=1))
    # The second of two rounds has 0.05 * (1e-6 / 0.05)^(1/2) = 2e-4: next to nothing.
    moved = [np.linalg.norm((end - first)[:65_824]) for end in (falling, flat)]
    assert moved[0] < 0.05 * moved[1]


@pytest.mark.slow
def test_sparsyfed_learns_with_pruned_activations(home, tmp_path):
    made = experiment(home, SPARSYFED, rounds=4, training=Training(1, 32, 0.3, weight_decay=1e-3))
    first = final(home, tmp_path / "a", made)
    rows = read_csv(tmp_path / "a" / "rounds.csv")
    assert [row["dropouts"] for row in rows] == ["0"] * 4  # No client lacks the graph that can prune.
    assert float(rows[-1]["accuracy"]) > 0.8
    union = [float(row["union_density"]) for row in rows]
    assert union == sorted(union, reverse=True)
    assert all(float(row["min_layer_density"]) > 0 for row in rows)
    made.method = {**SPARSYFED, "activation_pruning": False}
    assert final(home, tmp_path / "c", made).tobytes() != first.tobytes()


EVERY: dict[str, dict[str, Setting]] = {
    "sparsyfed": {"density": 0.2},
    "magnitude": {"density": 0.5, "bits": 8},
    "proxskip": {"density": 0.2},
    "fedpai_proxskip": {"density": 0.2},
    "topk": {"density": 0.2},
    "gradient_topk": {"density": 0.1},
    "fedprox": {},
    "fedpai_s": {"channels_pruned": 0.5, "slimming": 1e-4},
    "scaffold": {},
    "fedopt": {},
    "zerofl": {"density": 0.3, "mask_ratio": 0.2},
    "flash": {"density": 0.2, "warmup_epochs": 2},
    "feddst": {"density": 0.3, "every": 2},
    "lotteryfl": {"density": 0.3},
    "prunefl": {"density": 0.3, "every": 2},
    "ssfl": {"density": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_on_real_clients_to_the_same_bits(name, home, tmp_path):
    if name in ("fedavg", "fedpai"):
        pytest.skip("has tests of its own above")
    made = experiment(home, {"name": name, **EVERY[name]}, rounds=4, training=PLAIN)
    first = final(home, tmp_path / "a", made)
    rows = read_csv(tmp_path / "a" / "rounds.csv")
    assert [row["updates"] for row in rows] == [str(CLIENTS)] * len(rows)
    assert sum(int(row["alarms"]) for row in rows) == 0
    assert float(rows[-1]["accuracy"]) > 0.5  # Chance is 0.1; four short rounds.
    assert final(home, tmp_path / "b", made).tobytes() == first.tobytes()


@pytest.mark.slow
def test_a_mean_that_is_the_weights_is_fetched_once(home, tmp_path):
    down = {}
    for name in ("proxskip", "topk"):
        made = experiment(home, {"name": name, "density": 0.2, "scope": "layer"}, rounds=3, training=PLAIN)
        simulate(made, clients(home), tmp_path / name)
        down[name] = int(read_csv(tmp_path / name / "rounds.csv")[2]["download_bytes"])
    assert down["proxskip"] < 1.5 * down["topk"]
