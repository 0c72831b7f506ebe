"""Federations of real processes over real brokers: equal to Loopback, and alive after kill -9."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from coordinator.experiment import read
from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from protocol import artifact as artifacts
from tests.controls import sum_of_controls
from tools.simulate import simulate
from tools.split import split

SPARSE = {"name": "fedpai", "density": 0.1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the small CNN, and the digits split among five clients."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("processes")
    export_model("cnn", (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=5, how="dirichlet", alpha=1.0, seed=0)
    return folder


@pytest.fixture
def make(home, federate):
    return lambda num_clients=3: federate(home, num_clients)


def weights(folder: Path) -> dict[str, bytes]:
    with np.load(folder / "weights.npz") as stored:
        return {name: stored[name].tobytes() for name in stored.files}


def over_loopback(one) -> dict[str, bytes]:
    """The same experiment in one process."""
    made = read(one.experiment)
    ids = [f"client-{n:03}" for n in range(one.num_clients)]
    data = {client_id: one.home / "data" / f"{client_id}.npz" for client_id in ids}
    final = simulate(made, data, one.folder / "loopback")
    manifest = artifacts.read(Path(made.artifact))
    return {name: value.tobytes() for name, value in manifest.layout.views(final.weights).items()}


def test_mqtt_and_loopback_give_the_same_bits(make):
    one = make()
    one.write(SPARSE, rounds=2)
    one.start_coordinator("--out", str(one.out))
    one.start_clients()
    summary = one.finish()
    assert [row["updates"] for row in read_csv(Path(summary["report"]) / "rounds.csv")] == ["3"] * 3
    assert weights(one.out) == over_loopback(one)


@pytest.mark.slow
@pytest.mark.mosquitto
def test_mosquitto_gives_the_same_bits_too(make, mosquitto):
    one = make()
    one.url, one.fleet, one.password = mosquitto.url, "lab", "ecived"
    one.write(SPARSE, rounds=2, broker={"url": mosquitto.url, "fleet": "lab"})
    one.start_coordinator("--out", str(one.out), password="rotanidrooc")
    one.start_clients()
    one.finish()
    assert weights(one.out) == over_loopback(one)


@pytest.mark.slow
def test_clients_train_on_the_training_builds_module_when_asked(make):
    one = make(2)
    one.write(SPARSE, rounds=3)
    one.start_coordinator("--out", str(one.out))
    one.start_clients("--runtime", "module")
    one.finish()
    assert [row["updates"] for row in read_csv(one.out / "rounds.csv")] == ["2"] * 4
    runtimes = {row["runtime"] for row in read_csv(one.out / "devices.csv")}
    assert all(runtime.endswith(" module") for runtime in runtimes), runtimes


@pytest.mark.slow
def test_a_client_without_the_memory_refuses_and_the_others_go_on(make):
    one = make()
    one.write({"name": "fedavg"}, rounds=2)
    one.start_coordinator("--out", str(one.out))
    for number in range(3):
        one.start_client(number, *(["--memory-budget-mb", "60"] if number == 1 else []))
    one.finish()
    rows = read_csv(one.out / "rounds.csv")
    assert [(row["updates"], row["dropouts"]) for row in rows] == [("2", "1"), ("2", "1")]
    refused = [event for event in one.events() if event["event"] == "task-refused"]
    assert {event["client"] for event in refused} == {"client-001"}
    assert "this device has a budget of 60 MB" in refused[0]["reason"]
    # Not even the graph was fetched.
    assert not list((one.folder / "client-001").rglob(artifacts.STEP))


@pytest.mark.slow
def test_a_killed_client_does_not_stop_the_run_and_rejoins(make):
    one = make(5)
    one.write({"name": "fedavg"}, rounds=12, deadline_s=20)
    one.start_coordinator("--out", str(one.out))
    one.start_clients()
    one.await_event(event="round-opened", round=3)
    one.kill(2)
    one.await_event(event="client-lost", client="client-002")
    one.await_event(event="round-closed", round=4)
    one.start_client(2)
    one.await_event(event="client-joined", client="client-002", session=2)
    summary = one.finish()
    assert summary["accuracy"] > 0.9
    updates = [int(row["updates"]) for row in read_csv(one.out / "rounds.csv")]
    assert len(updates) == 12
    assert min(updates) == 4
    assert updates[-1] == 5


@pytest.mark.slow
def test_a_client_killed_again_and_again_moves_its_control_variate_once(make):
    """It dies at any moment of a round: before, between or after its memory and its upload are written."""
    one = make()
    one.write({"name": "proxskip", "density": 0.2}, rounds=16, momentum=0.0, deadline_s=20, quorum=0.6)
    one.start_coordinator("--out", str(one.out))
    one.start_clients()
    for number in (2, 4, 6, 8, 10):
        one.await_event(event="round-opened", round=number)
        one.kill(1)
        one.start_client(1)
    one.finish()
    rows = read_csv(one.out / "rounds.csv")
    assert len(rows) == 16
    assert sum(int(row["alarms"]) for row in rows) == 0
    assert {row["updates"] for row in rows} <= {"2", "3"}
    assert all(float(row["control_sum"]) < 1e-4 for row in rows)
    assert "Traceback" not in one.logs()
    states = {client_id: one.folder / client_id for client_id in one.clients}
    assert np.abs(sum_of_controls(one.out, one.home / "artifact", states)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "method"),
    [
        (signal.SIGINT, SPARSE),
        (signal.SIGTERM, {"name": "fedpai", "density": 0.2, "masks": "personal"}),
        (signal.SIGKILL, {"name": "proxskip", "density": 0.2}),
    ],
    ids=["ctrl-c", "terminated", "killed"],
)
def test_an_interrupted_run_resumes_and_ends_in_the_same_bits(make, how, method):
    """With personal masks the new coordinator does not know what the clients refer to, and says so.

    With control variates it must know whom it averaged, and two of three clients are asked each round.
    """
    settings = {"momentum": 0.0, "per_round": 2} if method["name"] == "proxskip" else {}
    whole = make()
    whole.write(method, rounds=20, **settings)
    whole.start_coordinator("--out", str(whole.out))
    whole.start_clients()
    whole.finish()

    cut = make()
    cut.write(method, rounds=20, **settings)
    cut.start_coordinator("--out", str(cut.out))
    cut.start_clients()
    cut.await_event(event="round-closed", round=2)
    cut.coordinator.send_signal(how)
    _, error = cut.coordinator.communicate(timeout=30)
    if how != signal.SIGKILL:
        assert cut.coordinator.returncode == 130
        assert "--resume" in error
    cut.start_coordinator("--resume", str(cut.out))
    cut.finish()
    assert weights(cut.out) == weights(whole.out)
    numbers = [int(row["round_number"]) for row in read_csv(cut.out / "rounds.csv")]
    assert numbers == list(range(0 if method is SPARSE else 1, 21))
    assert sum(int(row["alarms"]) for row in read_csv(cut.out / "rounds.csv")) == 0


@pytest.mark.slow
def test_an_energy_aware_run_that_was_killed_goes_on_with_what_was_spent(make):
    """Who is asked depends on joules measured in real processes: no bits to compare, but nobody is asked anew."""
    cut = make()
    cut.write(SPARSE, rounds=14, per_round=2, choose="energy", train_target_s=5.0)
    cut.start_coordinator("--out", str(cut.out))
    cut.start_clients("--energy", "model")
    cut.await_event(event="round-closed", round=6)
    cut.coordinator.kill()
    cut.coordinator.communicate()
    cut.start_coordinator("--resume", str(cut.out))
    assert cut.finish()["rounds"] == 14
    numbers = [int(row["round_number"]) for row in read_csv(cut.out / "rounds.csv")]
    assert numbers == list(range(15))
    spent: dict[str, float] = {}
    for row in read_csv(cut.out / "devices.csv"):
        spent[row["client_id"]] = spent.get(row["client_id"], 0.0) + float(row["energy_j"])
    assert len(spent) == 3
    # The least spent are asked: had the second coordinator begun at zero, one could have been asked twice as often.
    assert max(spent.values()) <= 2 * min(spent.values())
