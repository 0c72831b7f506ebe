"""Buffered asynchronous rounds: nobody waits for the slowest, and its work counts all the same."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from coordinator.asynchronous import FRESH, AsynchronousConfig, restated
from coordinator.report import EVENTS, read_csv
from edge_client.kernels import library_path
from edge_client.ort import PORTABLE
from edge_client.runtime import Backend, onnx_backend
from protocol.errors import ConfigError
from protocol.sparse import Mask, SparseVector
from tests.test_federation_loopback import (  # noqa: F401  A fixture.
    DENSE,
    PERSONAL,
    PLAIN,
    PROXSKIP,
    SHARED,
    clients,
    experiment,
    home,
)
from tools.simulate import simulate

SLOW = "client-003"


def slowed(behind: int) -> Backend:
    """The usual runtime; before each step of one client the others take so many.

    Steps and not seconds, so that a fast machine's client is as late as a slow one's. Where the others rest
    (they have scored, the run has ended), it waits for a moment only.
    """
    usual = onnx_backend(PORTABLE, library_path(), 1)
    others, taken = threading.Condition(), 0

    def pause() -> None:
        with others:
            goal = taken + behind
            others.wait_for(lambda: taken >= goal, timeout=0.3)

    def count() -> None:
        nonlocal taken
        with others:
            taken += 1
            others.notify()

    def open_(manifest, folder, saved):
        runtime = usual.open(manifest, folder, saved)
        step = runtime.step
        before = pause if threading.current_thread().name == SLOW else count
        runtime.step = lambda *arguments: (before(), step(*arguments))[1]
        return runtime

    return Backend("slowed", open_)


def run(home, out, made, behind=6):  # noqa: F811
    simulate(made, clients(home), out, backend=slowed(behind))
    events = [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]
    return read_csv(out / "rounds.csv"), events


@pytest.mark.slow
@pytest.mark.parametrize("method", [DENSE, SHARED], ids=["fedavg", "fedpai"])
def test_rounds_go_on_without_the_slowest_whose_update_counts_later(fault, method, home, tmp_path):  # noqa: F811
    made = experiment(home, method, rounds=14, asynchronous=AsynchronousConfig(buffer=2, max_staleness=14))
    rows, events = run(home, tmp_path, made)
    training = [row for row in rows if row["stage"] == "train"]
    assert all(int(row["updates"]) >= 2 for row in training)
    assert sum(int(row["stale"]) for row in training) >= 1
    assert sum(int(row["late"]) for row in training) == 0
    assert all(row["loss"] != "nan" for row in rows)
    assert float(rows[-1]["accuracy"]) > 0.7
    row = fault(8)
    row.trials = sum(int(line["stale"]) for line in training)
    opened = [event for event in events if event["event"] == "round-opened"]
    assert all(SLOW in event["cohort"] for event in opened)  # At work since an earlier round.


@pytest.mark.slow
def test_what_is_too_stale_is_begun_anew(home, tmp_path):  # noqa: F811
    made = experiment(home, DENSE, rounds=12, asynchronous=AsynchronousConfig(buffer=2, max_staleness=1))
    rows, events = run(home, tmp_path, made, behind=12)
    assert float(rows[-1]["accuracy"]) > 0.7
    missing = [event["round"] for event in events if event["event"] == "client-missing"]
    assert len(missing) >= 3


@pytest.mark.slow
def test_an_equally_fast_fleet_gives_what_synchronous_rounds_give(home, tmp_path):  # noqa: F811
    """With all clients in the buffer nobody is ever stale: the same updates, the same weights but for the factor."""
    plain = simulate(experiment(home, DENSE, rounds=3), clients(home), tmp_path / "plain")
    made = experiment(home, DENSE, rounds=3, asynchronous=AsynchronousConfig(buffer=4))
    buffered = simulate(made, clients(home), tmp_path / "buffered")
    np.testing.assert_allclose(buffered.weights, plain.weights, atol=1e-6)


def test_statistics_of_an_old_update_are_the_values_that_it_reached():
    mask = Mask(np.array([1, 4, 5], np.int32), 6)
    update = SparseVector(mask, np.array([0.5, -0.9, 0.25], np.float32))
    then, now = np.array([1.0, 0.0], np.float32), np.array([0.125, 0.5], np.float32)
    moved = restated(update, then, now)
    np.testing.assert_allclose(moved.values, [0.5, 0.1 - 0.125, 0.25 - 0.5], atol=1e-7)
    assert restated(update, then[:0], now[:0]).values.tolist() == update.values.tolist()


def test_older_updates_weigh_less():
    config = AsynchronousConfig(buffer=2, exponent=0.5)
    assert config.weight(100, 0) == 100 * FRESH
    assert config.weight(100, 3) == 50 * FRESH
    assert AsynchronousConfig(buffer=2, exponent=0).weight(100, 9) == 100 * FRESH
    assert config.weight(1, 1000) == 1


@pytest.mark.parametrize("method", [PERSONAL, PROXSKIP], ids=["personal", "proxskip"])
def test_methods_that_need_one_common_model_refuse(method, home):  # noqa: F811
    with pytest.raises(ConfigError, match=r"asynchronous\.buffer = 0"):
        experiment(home, method, asynchronous=AsynchronousConfig(buffer=2), training=PLAIN).build_method()
