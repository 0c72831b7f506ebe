from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge_client.kernels import library_path
from edge_client.limits import Budget, LimitsConfig, Watchdog
from edge_client.ort import PORTABLE
from edge_client.runtime import open_runtime
from protocol import artifact as artifacts
from protocol.errors import ArtifactError, OverBudget
from protocol.graphs import check_graph
from protocol.sparse import Mask, SparseVector


def test_a_task_stays_within_its_time():
    now = 100.0
    budget = Budget(LimitsConfig(round_time_s=10.0), lambda: None, lambda: now)
    now = 110.0
    budget.check()
    now = 110.5
    with pytest.raises(OverBudget, match=r"limits\.round_time_s = 10"):
        budget.check()


def test_a_task_stays_within_its_joules():
    spent: float | None = 4.9
    budget = Budget(LimitsConfig(round_energy_j=5.0), lambda: spent)
    budget.check()
    spent = 5.1
    with pytest.raises(OverBudget, match=r"took 5\.1 J so far.*limits\.round_energy_j = 5"):
        budget.check()
    spent = None
    with pytest.raises(OverBudget, match="sparsefleet energy sources"):
        budget.check()
    Budget(LimitsConfig(), lambda: None).check()


def test_a_watchdog_interrupts_the_step_that_is_too_long_and_no_other():
    interrupted = threading.Event()
    watchdog = Watchdog(0.05, interrupted.set)
    for _ in range(100):
        with watchdog.watch():
            pass
    assert not interrupted.is_set()
    for _ in range(2):
        with watchdog.watch():
            assert interrupted.wait(5)
        assert watchdog.has_interrupted
        interrupted.clear()
    with watchdog.watch():
        time.sleep(0.001)
    assert not watchdog.has_interrupted
    time.sleep(0.1)  # Between steps nothing is interrupted.
    assert not interrupted.is_set()


def test_a_watchdog_without_a_limit_has_no_thread():
    watchdog = Watchdog(0.0, lambda: None)
    before = threading.active_count()
    with watchdog.watch():
        assert threading.active_count() == before


def a_runtime(folder, step_time_s: float):
    manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
    runtime = open_runtime(PORTABLE, manifest, folder, library_path(), 1, step_time_s=step_time_s)
    runtime.bind(
        SparseVector(Mask.full(manifest.layout.size), np.full(manifest.layout.size, 0.01, np.float32))
    )
    return manifest, runtime


def test_a_step_of_ten_times_the_limit_is_stopped_and_the_next_one_runs(artifact, fault):
    """The step is the same; the limit is a tenth of what it takes."""
    manifest, runtime = a_runtime(artifact("cnn"), 60.0)
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((1024, *manifest.input_shape), dtype=np.float32), np.zeros(1024, np.int64)
    watchdog = runtime._watchdog
    # The quickest of several: whatever else runs here makes a step longer, none shorter.
    whole, stopped = [], []
    for _ in range(5):
        begin_s = time.monotonic()
        expected = runtime.step(batch)
        whole.append(time.monotonic() - begin_s)
    watchdog.limit_s = min(whole) / 10
    for _ in range(5):
        begin_s = time.monotonic()
        with pytest.raises(OverBudget, match=r"limits\.step_time_s"):
            runtime.step(batch)
        stopped.append(time.monotonic() - begin_s)
    # It ends before the next node: in a fraction of what the whole step takes.
    assert min(stopped) < 0.7 * min(whole)
    watchdog.limit_s = 60.0
    assert runtime.step(batch) == expected
    fault(28).trials = 1


def test_a_hostile_graph_is_refused_before_it_is_opened(artifact, tmp_path):
    import onnx

    folder = artifact("cnn")
    model = onnx.load(str(folder / "step.onnx"))
    model.graph.node[0].domain = "evil.example"
    (tmp_path / "step.onnx").write_bytes(model.SerializeToString())
    manifest = artifacts.parse((folder / artifacts.MANIFEST).read_bytes())
    with pytest.raises(ArtifactError, match=r"evil\.example.* is not one that a device runs"):
        open_runtime(PORTABLE, manifest, tmp_path, library_path(), 1)


def test_what_export_writes_is_not_refused(artifact):
    for name in ("cnn", "lenet"):
        for path in artifact(name).glob("*.onnx"):
            if path.name != artifacts.EVAL:  # The coordinator's.
                check_graph(path.name, path.read_bytes())
