from __future__ import annotations

import builtins
import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_client.kernels import library_path
from edge_client.ort import MODULE, PORTABLE, SPIN_US, session_options
from edge_client.runtime import Runtime, onnx_backend, open_runtime
from export import parity
from export.models import DEFAULT_INPUT_SHAPE, builder
from protocol import artifact as artifacts
from protocol.errors import ArtifactError, RuntimeMissing
from protocol.layout import PRUNABLE, STATISTIC
from protocol.sparse import Mask, SparseVector

KINDS = [PORTABLE]
if importlib.util.find_spec("onnxruntime.training") is not None:
    KINDS.append(MODULE)


class Case:
    """An artifact with a runtime, its module and its initial weights."""

    def __init__(self, folder, kind: str) -> None:
        self.manifest = artifacts.read(folder)
        self.layout = self.manifest.layout
        self.flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), self.layout)
        self.runtime: Runtime = open_runtime(kind, self.manifest, folder, library_path(), threads=1)
        torch.manual_seed(0)
        self.module = builder(self.manifest.model)(DEFAULT_INPUT_SHAPE[self.manifest.model], 10)

    def batch(self, size: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((size, *self.manifest.input_shape)).astype(np.float32)
        return x, (np.arange(size) % 10).astype(np.int64)

    def ours(self, mask: Mask, batch) -> dict[str, np.ndarray]:
        """One step, by the names of the step graph."""
        self.runtime.bind(SparseVector.of(self.flat, mask))
        found = {"loss": np.asarray(self.runtime.step(batch))}
        for piece in self.layout.pieces:
            begin, end = np.searchsorted(mask.indices, [piece.offset, piece.end])
            suffix = "batch" if piece.role == STATISTIC else "gradient"
            found[f"{piece.name}.{suffix}"] = self.runtime.gradient[begin:end]
        return found

    def agrees_with_torch(self, mask: Mask, batch) -> None:
        """To 1e-4, on PyTorch's own side of each ReLU: these networks are small enough."""
        expected = torch_step(self, mask, batch)
        for difference in parity.differences(self.ours(mask, batch), expected):
            assert difference.relative < 1e-4, difference


def torch_step(case: Case, mask: Mask, batch):
    class AsItIs(parity._SameSide):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    original, parity._SameSide = parity._SameSide, AsItIs
    try:
        return parity.torch_step(case.module, case.layout, case.flat, mask, batch, [])
    finally:
        parity._SameSide = original


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "size"), [("lenet", 1), ("lenet", 7), ("cnn", 7), ("cnn", 33)])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.02])
def test_loss_and_gradients_are_those_of_pytorch(kind, model, size, density, artifact):
    case = Case(artifact(model), kind)
    mask = parity.random_mask(case.layout, density, np.random.default_rng(1))
    case.agrees_with_torch(mask, case.batch(size))


@pytest.mark.slow
@pytest.mark.skipif(MODULE not in KINDS, reason="the training build of onnxruntime is not installed")
@pytest.mark.parametrize("model", ["mlp", "resnet8", "resnet18", "vgg19"])
def test_both_runtimes_agree_on_the_large_models(model, artifact):
    """The portable one is compared with PyTorch in tests/export, on the same side of each ReLU."""
    portable, module = (Case(artifact(model), kind) for kind in (PORTABLE, MODULE))
    rng = np.random.default_rng(1)
    for density in (1.0, 0.5, 0.1, 0.02):
        mask = parity.random_mask(portable.layout, density, rng)
        expected = portable.ours(mask, portable.batch(5))
        for difference in parity.differences(module.ours(mask, portable.batch(5)), expected):
            assert difference.relative < 1e-4, difference


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_mask_needs_no_new_runtime(kind, artifact):
    case = Case(artifact("lenet"), kind)
    rng = np.random.default_rng(2)
    for density in (0.1, 1.0, 0.3, 0.1):
        case.agrees_with_torch(parity.random_mask(case.layout, density, rng), case.batch(5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_may_lose_all_its_weights(kind, artifact):
    case = Case(artifact("lenet"), kind)
    second = [p for p in case.layout.of_role(PRUNABLE)][1]
    kept = np.setdiff1d(np.arange(case.layout.num_prunable), np.arange(second.offset, second.end))
    case.agrees_with_torch(Mask.of_model(kept, case.layout), case.batch(5))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_changed_in_place(kind, artifact):
    case = Case(artifact("lenet"), kind)
    case.runtime.bind(SparseVector.of(case.flat, Mask.full(case.layout.size)))
    batch = case.batch(5)
    before = case.runtime.step(batch)
    case.runtime.values -= 0.1 * case.runtime.gradient
    assert case.runtime.step(batch) < before


def test_weights_and_gradients_begin_on_a_cache_line(artifact):
    case = Case(artifact("cnn"), PORTABLE)
    for density in (0.1, 0.5):
        mask = parity.random_mask(case.layout, density, np.random.default_rng(0))
        case.runtime.bind(SparseVector(mask, case.flat[mask.indices]))
        for array in (case.runtime.values, case.runtime.gradient):
            assert array.size == mask.nnz
            assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_out_of_range_is_an_error_and_the_runtime_goes_on(kind, artifact):
    case = Case(artifact("lenet"), kind)
    case.runtime.bind(SparseVector.of(case.flat, Mask.full(case.layout.size)))
    x, y = case.batch(5)
    before = case.runtime.step((x, y))
    with pytest.raises(ArtifactError, match="training step failed"):
        case.runtime.step((x, y + 10))
    assert case.runtime.step((x, y)) == before


def test_the_temperature_divides_the_logits(artifact):
    case = Case(artifact("lenet"), PORTABLE)
    case.runtime.bind(SparseVector.of(case.flat, Mask.full(case.layout.size)))
    x, y = case.batch(5)
    logits = case.module(torch.from_numpy(x)) / 200
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).item()
    assert case.runtime.step((x, y), temperature=200.0) == pytest.approx(expected, rel=1e-6)


def test_the_module_runtime_is_never_replaced_by_another(artifact, monkeypatch):
    real = builtins.__import__

    def without_training(name, *args, **kwargs):
        if name.startswith("onnxruntime.training"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_training)
    with pytest.raises(RuntimeMissing, match="needs onnxruntime-training-cpu"):
        Case(artifact("lenet"), MODULE)


def test_a_mask_that_lacks_what_is_never_pruned_is_refused(artifact):
    case = Case(artifact("lenet"), PORTABLE)
    mask = Mask(np.arange(case.layout.size - 1, dtype=np.int32), case.layout.size)
    with pytest.raises(ArtifactError, match="never pruned"):
        case.runtime.bind(SparseVector.of(case.flat, mask))


def test_nodes_run_in_the_order_of_the_file(artifact, tmp_path):
    """Memory is planned in that order; left to itself onnxruntime delays what only the backward pass reads."""
    folder = artifact("resnet8")
    options = session_options(library_path(), threads=1)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    step = onnx.load(str(folder / artifacts.STEP))
    session = onnxruntime.InferenceSession(step.SerializeToString(), options, ["CPUExecutionProvider"])
    case = Case(folder, PORTABLE)
    mask = parity.random_mask(case.layout, 0.1, np.random.default_rng(0))
    session.run(None, parity.feeds(case.layout, case.flat, mask, *case.batch(3)))
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    ran = [e["name"].removesuffix("_kernel_time") for e in sorted(kernels, key=lambda e: e["ts"])]
    assert ran == [node.name for node in step.graph.node]


@pytest.mark.parametrize("version", ["1.19.2", "1.25.1", "1.26.0", "1.31.1", "2.0.0"])
@pytest.mark.parametrize("spin", [False, True])
def test_threads_spin_without_a_bound_only_where_asked_and_never_between_steps(spin, version, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    options = session_options(library_path(), threads=2, spin=spin)
    is_bounded = version not in ("1.19.2", "1.25.1")
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spin or is_bounded))
    duration = "session.intra_op.spin_duration_us"
    if is_bounded and not spin:
        assert options.get_session_config_entry(duration) == str(SPIN_US)
    else:
        with pytest.raises(RuntimeError, match=duration):
            options.get_session_config_entry(duration)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert onnx_backend(PORTABLE, library_path(), 2, spin=spin).name.endswith(", threads spin") == spin
