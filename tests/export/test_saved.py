"""Saved activations change nothing but memory; pruned ones change weight gradients alone, as in the paper."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edge_client.kernels import library_path
from edge_client.ort import MODULE, PORTABLE, session_options
from edge_client.runtime import COMPRESSED, FULL, HALF, open_runtime
from export.export import export_model, export_module
from export.parity import differences, feeds, random_mask
from export.saved import compress, unpruned
from protocol import artifact as artifacts
from protocol.artifact import STEP, STEP_COMPRESSED, STEP_HALF
from protocol.errors import ArtifactError, RuntimeMissing
from protocol.layout import PRUNABLE, STATISTIC
from protocol.sparse import SparseVector

MODELS = [
    ("lenet", (1, 28, 28)),
    ("cnn", (1, 8, 8)),
    pytest.param("resnet8", (3, 16, 16), marks=pytest.mark.slow),
    ("mlp", (1, 8, 8)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("saved")

    def of(name, shape):
        if not (made / name).exists():
            export_model(name, shape, 10, made / name, library_path())
        return made / name

    return of


def inputs(folder, batch=19, density=0.3):
    manifest = artifacts.read(folder)
    flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), manifest.layout)
    rng = np.random.default_rng(0)
    mask = random_mask(manifest.layout, density, rng)
    x = rng.standard_normal((batch, *manifest.input_shape)).astype(np.float32)
    return feeds(manifest.layout, flat, mask, x, np.arange(batch) % 10), manifest, flat, mask


def run(step, given, threads=1):
    session = onnxruntime.InferenceSession(
        step.SerializeToString(), session_options(library_path(), threads), ["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs() if not o.name.endswith("threshold_used")]
    return dict(zip(names, session.run(names, {**given, **unpruned(step)}), strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "shape"), MODELS)
def test_compressed_activations_give_the_same_bits(name, shape, threads, folder):
    given, *_ = inputs(folder(name, shape))
    plain = run(onnx.load(folder(name, shape) / STEP), given, threads)
    saved = run(onnx.load(folder(name, shape) / STEP_COMPRESSED), given, threads)
    assert plain.keys() == saved.keys()
    for key, value in plain.items():
        assert value.tobytes() == saved[key].tobytes(), key


@pytest.mark.parametrize(("name", "shape"), MODELS)
def test_half_precision_moves_gradients_by_less_than_its_rounding(name, shape, folder):
    """A half has 11 bits: 2^-11 = 4.9e-4 for one value, less for a sum; the loss is not concerned at all."""
    given, *_ = inputs(folder(name, shape))
    plain = run(onnx.load(folder(name, shape) / STEP), given)
    half = run(onnx.load(folder(name, shape) / STEP_HALF), given)
    expected = {key: value.astype(np.float64) for key, value in plain.items()}
    found = {d.tensor: d.relative for d in differences(half, expected)}
    assert half["loss"] == plain["loss"]
    assert 1e-6 < max(found.values()) < 1e-3, found


def test_maxima_are_not_found_again_from_rounded_values(folder):
    made = folder("cnn", (1, 8, 8))
    step, half = (onnx.load(made / name) for name in (STEP, STEP_HALF))
    assert any(node.op_type == "BatchNormReluMaxPool" for node in step.graph.node)
    assert any(node.op_type == "MaxPool" for node in half.graph.node)
    with pytest.raises(ValueError, match="rounded values"):
        compress(step, True)


def test_every_waiting_activation_of_a_residual_network_is_saved(folder):
    """Between forward and backward only the input of the network and its Flatten stay as they are."""
    step = onnx.load(folder("resnet8", (3, 16, 16)) / STEP_HALF)
    wrote = {name: node.op_type for node in step.graph.node for name in node.output}
    read = {
        (node.op_type, wrote[name])
        for node in step.graph.node
        for name in node.input
        if node.op_type.endswith("Grad") and name in wrote
    }
    big = {"SparseConv", "BatchNormRelu", "BatchNormAddRelu", "MaxPool"}
    crossing = {(reader, writer) for reader, writer in read if writer in big}
    # What is left are the statistics of a batch norm: vectors of a channel each.
    assert {reader for reader, _ in crossing if not reader.startswith("BatchNorm")} == set()
    assert not any(writer == "SparseConv" for _, writer in crossing)


class _PrunedWeightGradient(torch.autograd.Function):
    """The layer's output and input gradient from all of x, the weight gradient from its largest values."""

    @staticmethod
    def forward(ctx, x, weight, apply, threshold):
        ctx.save_for_backward(torch.where(x.abs() >= threshold, x, 0.0), x, weight)
        ctx.apply_layer = apply
        return apply(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        pruned, x, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            (dx,) = torch.autograd.grad(ctx.apply_layer(x, weight), x, gradient)
            (dw,) = torch.autograd.grad(ctx.apply_layer(pruned, weight), weight, gradient)
        return dx, dw, None, None


class _Sparsyfed(nn.Module):
    """A layer with SparsyFed's activation pruning: a convolution keeps its first batch's threshold."""

    def __init__(self, layer: nn.Module, keep: float) -> None:
        super().__init__()
        self.layer, self.keep, self.threshold = layer, keep, None

    def forward(self, x):
        layer, is_convolution = self.layer, isinstance(self.layer, nn.Conv2d)

        def apply(x, weight):
            if is_convolution:
                return nn.functional.conv2d(x, weight, None, layer.stride, layer.padding)
            return nn.functional.linear(x, weight)

        if self.threshold is None or not is_convolution:
            k = int(np.ceil(max(self.keep, 1e-7) * x.numel()))
            self.threshold = x.detach().abs().flatten().sort(descending=True).values[k - 1].item()
        y = _PrunedWeightGradient.apply(x, layer.weight, apply, self.threshold)
        return y + layer.bias.reshape(-1, *[1] * (y.dim() - 2))


def test_pruned_weight_gradients_are_those_of_pytorch(tmp_path):
    """Two batches: the second finds the convolutions' thresholds of the first, and its own for the linear ones."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 4, 12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip
    export_module(module, "small", (2, 8, 8), tmp_path / "artifact", library_path())
    _, manifest, flat, mask = inputs(tmp_path / "artifact")
    keep = {"0.weight": 0.4, "3.weight": 0.1, "7.weight": 0.15, "9.weight": 0.2}
    reference = module.double().train()
    state = reference.state_dict()
    with torch.no_grad():
        for name, view in manifest.layout.views(SparseVector.of(flat, mask).dense()).items():
            state[name].copy_(torch.from_numpy(view))
    parameters = dict(reference.named_parameters())
    for name, share in keep.items():
        at = int(name.partition(".")[0])
        reference[at] = _Sparsyfed(reference[at], share)

    runtime = open_runtime(
        PORTABLE, manifest, tmp_path / "artifact", library_path(), threads=1, saved=COMPRESSED
    )
    runtime.bind(SparseVector.of(flat, mask))
    runtime.prune_saved(keep)
    rng = np.random.default_rng(5)
    for size in (19, 32):
        x = rng.standard_normal((size, 2, 8, 8)).astype(np.float32)
        labels = np.arange(size) % 10
        runtime.step((x, labels))
        reference.zero_grad()
        nn.functional.cross_entropy(
            reference(torch.from_numpy(x).double()), torch.from_numpy(labels)
        ).backward()
        ours, theirs = {}, {}
        for piece in manifest.layout.pieces:
            begin, end = np.searchsorted(mask.indices, [piece.offset, piece.end])
            if piece.role == STATISTIC:
                continue
            value = parameters[piece.name].grad.numpy()
            stored = mask.indices[begin:end] - piece.offset
            key = f"{piece.name}.gradient"
            theirs[key] = value.reshape(-1)[stored] if piece.role == PRUNABLE else value
            ours[key] = runtime.gradient[begin:end].copy()
        for difference in differences(ours, theirs):
            assert difference.relative < 1e-4, (size, difference)
    # And it does prune: without it the gradient is another.
    runtime.prune_saved({})
    runtime.step((x, labels))
    piece = manifest.layout.by_name["3.weight"]
    part = slice(*np.searchsorted(mask.indices, [piece.offset, piece.end]))
    pruned = ours["3.weight.gradient"]
    assert np.linalg.norm(pruned - runtime.gradient[part]) > 0.1 * np.linalg.norm(pruned)


def test_only_a_graph_that_saves_can_prune_and_the_native_one_cannot_save(folder):
    made = folder("cnn", (1, 8, 8))
    manifest = artifacts.read(made)
    runtime = open_runtime(PORTABLE, manifest, made, library_path(), threads=1, saved=FULL)
    with pytest.raises(ArtifactError, match="compressed or half"):
        runtime.prune_saved({"0.weight": 0.1})
    with pytest.raises(RuntimeMissing, match="portable"):
        open_runtime(MODULE, manifest, made, library_path(), threads=1, saved=HALF)


def test_saving_stands_right_behind_the_forward_reader_in_the_order_of_execution(folder, tmp_path):
    """If the runtime delayed it to the backward pass, the whole activation would wait with it."""
    made = folder("resnet8", (3, 16, 16))
    step = onnx.load(made / STEP_COMPRESSED)
    options = session_options(library_path(), threads=1)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(step.SerializeToString(), options, ["CPUExecutionProvider"])
    given, *_ = inputs(made)
    session.run(None, {**given, **unpruned(step)})
    with open(session.end_profiling()) as file:  # noqa: PTH123
        events = [e for e in json.load(file) if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    ran = [e["args"]["op_name"] for e in sorted(events, key=lambda e: e["ts"])]
    loss = ran.index("SoftmaxCrossEntropy")
    assert not any(op.startswith("Save") for op in ran[loss:])
    for i, op in enumerate(ran):
        if op == "RestoreActivation":
            assert ran[i + 1] in ("SparseConvGrad", "SparseGemmGrad")


@pytest.mark.slow
def test_half_precision_takes_less_memory_in_a_deep_network(tmp_path):
    """A shallow one gains nothing, for at its peak a layer's tensors are whole again."""
    from export.models import builder

    module = builder("resnet18")((3, 8, 8), 10)
    memory = export_module(module, "resnet18", (3, 8, 8), tmp_path / "a", library_path()).manifest.memory
    assert memory[STEP_HALF].activations(256) < 0.8 * memory[STEP].activations(256)


def test_compression_takes_less_memory_where_outputs_of_relu_wait(tmp_path):
    """In a chain of them; with two, as in LeNet, the last one's tensors are whole at the peak."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8 * 8, 10))
    memory = export_module(module, "chain", (3, 8, 8), tmp_path / "a", library_path()).manifest.memory
    assert memory[STEP_COMPRESSED].activations(64) < 0.9 * memory[STEP].activations(64)
