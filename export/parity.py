"""Is the graph the network? Loss and every gradient are compared with PyTorch's autograd.

The comparison runs at several densities, with masked weights on PyTorch's side, and on a batch
whose size is no multiple of the 16 lanes. PyTorch computes in float64, so that the difference is
the graph's error alone.

Kinks need care. Among the ten million ReLUs of a ResNet-18 step a few inputs are so close to zero
that float32 rounding decides their sign, and each such sign moves gradients by 1e-3: PyTorch's own
float32 gradients miss its float64 ones by that much. The same holds for the maximum of a window whose
largest values are next to each other. So PyTorch is evaluated on the same side of each kink as the graph
(`_SameSide`), and a side may differ only where rounding decides it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import nn
from torch.overrides import TorchFunctionMode

from export.fuse import FUSED_WINDOW
from export.graph import DOMAIN, KEEP_HALO
from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, STATISTIC, Layout, Vector
from protocol.sparse import Mask, count_below, top_k

TOLERANCE = 1e-4
# Share of a layer's largest input within which the sign is a matter of rounding.
NEXT_TO_ZERO = 1e-4
Pair = tuple[int, int]
RELUS = {
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
    nn.functional.relu,
    nn.functional.leaky_relu,
}
MAX_POOLS = {torch.max_pool2d, nn.functional.max_pool2d}
DENSITIES = (1.0, 0.1)
BATCH = 19


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from PyTorch's: |ours - theirs| / |theirs|, Euclidean norms."""

    tensor: str
    relative: float


def check(
    step: onnx.ModelProto,
    module: nn.Module,
    layout: Layout,
    flat: Vector,
    num_classes: int,
    library: Path,
) -> float:
    """Return the largest relative difference over all densities and tensors.

    Raises:
        ArtifactError: a difference above 1e-4; the tensor, density and difference are named.
    """
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    observed, kinks = _with_kinks(step)
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    input_shape = [d.dim_value for d in step.graph.input[0].type.tensor_type.shape.dim][1:]
    x = rng.standard_normal([BATCH, *input_shape]).astype(np.float32)
    worst = 0.0
    for density in DENSITIES:
        mask = random_mask(layout, density, rng)
        labels = random_labels(step, BATCH, num_classes, rng)
        outputs = session.run(None, feeds(layout, flat, mask, x, labels))
        ours = dict(zip((o.name for o in session.get_outputs()), outputs, strict=True))
        sides = [ours.pop(name) if halo is None else _unblocked(ours.pop(name), halo) for name, halo in kinks]
        expected = torch_step(module, layout, flat, mask, (x, labels), sides)
        for difference in differences(ours, expected):
            if not difference.relative <= TOLERANCE:
                raise ArtifactError(
                    f"{difference.tensor} differs from PyTorch by {difference.relative:.1e} (allowed {TOLERANCE:.0e}) "
                    f"at density {density}; the artifact was not written"
                )
            worst = max(worst, difference.relative)
    return worst


def random_labels(
    step: onnx.ModelProto, count: int, num_classes: int, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Labels of the kind that the graph takes: each class in turn, or normally distributed numbers."""
    (labels,) = (info for info in step.graph.input if info.name == "labels")
    if labels.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        return rng.standard_normal([count, num_classes]).astype(np.float32)
    return np.arange(count, dtype=np.int64) % num_classes


def random_mask(layout: Layout, density: float, rng: np.random.Generator) -> Mask:
    """A mask that keeps this share of the prunable weights at random."""
    kept = top_k(rng.random(layout.num_prunable), round(density * layout.num_prunable))
    return Mask.of_model(kept, layout)


def feeds(
    layout: Layout, flat: Vector, mask: Mask, x: npt.NDArray[np.float32], labels: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the step graph for a masked model."""
    fed: dict[str, npt.NDArray[Any]] = {"x": x, "labels": labels, "temperature": np.ones((), np.float32)}
    for piece in layout.pieces:
        if piece.role == PRUNABLE:
            begin, end = count_below(mask.indices, [piece.offset, piece.end])
            stored = mask.indices[begin:end]
            fed[piece.name] = flat[stored]
            fed[f"{piece.name}.indices"] = (stored - piece.offset).astype(np.int32)
        else:
            fed[piece.name] = flat[piece.part].reshape(piece.shape)
    return fed


class _SameSide(TorchFunctionMode):
    """Evaluates each ReLU on the side of zero that the graph took, and each max pooling at its maxima."""

    def __init__(self, sides: list[npt.NDArray[np.generic]]) -> None:
        super().__init__()
        self._sides = iter(sides)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            return self._relu(args[0], *_slope(func, args[1:], kwargs or {}))
        if func in MAX_POOLS:
            return self._max_pool(args[0], **_pool_window(args[1:], kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _next(self, shape: tuple[int, ...]) -> torch.Tensor:
        taken = next(self._sides, None)
        if taken is None:
            raise ArtifactError("the graph has fewer ReLUs than the module; the artifact was not written")
        return torch.from_numpy(taken[: shape[0]]).reshape(shape)

    def _relu(self, x: torch.Tensor, slope: float) -> torch.Tensor:
        side = self._next(tuple(x.shape)) > 0
        differs = side != (x > 0)
        if bool((x.abs()[differs] > NEXT_TO_ZERO * x.abs().max()).any()):
            raise ArtifactError("a ReLU of the graph differs from PyTorch's; the artifact was not written")
        return torch.where(side, x, slope * x)

    def _max_pool(self, x: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
        around = (padding[1], padding[1], padding[0], padding[0])
        padded = nn.functional.pad(x, around, value=-torch.inf)
        windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
        place = self._next(tuple(windows.shape[:4])).long()
        taken = windows.gather(4, place[..., None])[..., 0]
        if bool((windows.amax(4) - taken > NEXT_TO_ZERO * x.abs().max()).any()):
            raise ArtifactError("a maximum of the graph differs from PyTorch's; the artifact was not written")
        return taken


def _slope(func: Any, args: Any, kwargs: Any) -> tuple[float]:
    if func is not nn.functional.leaky_relu:
        return (0.0,)
    return (float(args[0] if args else kwargs.get("negative_slope", 0.01)),)


def _pool_window(args: Any, kwargs: Any) -> dict[str, Pair]:
    given = dict(zip(("kernel_size", "stride", "padding"), args, strict=False)) | kwargs
    kernel = _pair(given["kernel_size"])
    stride = given.get("stride")
    return {
        "kernel": kernel,
        "stride": kernel if stride is None or stride == [] else _pair(stride),
        "padding": _pair(given.get("padding", 0)),
    }


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _with_kinks(step: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[str, int | None]]]:
    """Add the outputs of ReLUs and the maxima of pooling to the graph's.

    Return them in order, with their halo; None where the tensor is not blocked.
    """
    observed = onnx.ModelProto()
    observed.CopyFrom(step)
    halos = {
        node.output[0]: next((a.i for a in node.attribute if a.name == "out_halo"), 0)
        for node in step.graph.node
    }
    kinks: list[tuple[str, int | None]] = []
    for node in step.graph.node:
        if node.domain == DOMAIN and node.op_type in KEEP_HALO:  # These keep the halo of their input.
            halos[node.output[0]] = halos[node.input[0]]
        if node.op_type.endswith("Relu"):
            kinks.append((node.output[0], halos[node.output[0]] if node.domain == DOMAIN else None))
        elif node.op_type == "MaxPool":
            kinks.append((node.output[1], 0))
        elif node.op_type == "BatchNormReluMaxPool":
            apart = _taken_apart(node)
            observed.graph.node.extend(apart)
            kinks += [(apart[0].output[0], 0), (apart[1].output[1], 0)]
    for name, _ in kinks:
        observed.graph.output.append(onnx.ValueInfoProto(name=name))
    return observed, kinks


def _taken_apart(node: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Nodes for what a fused pooling does not write: the output of its ReLU, and the places of the maxima."""
    between = f"{node.output[0]}/between"
    x, scale, bias, _, _, count = node.input
    inputs = [x, scale, bias, node.output[1], node.output[3], count, x]
    given: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    relu = helper.make_node("BatchNormReluAgain", inputs, [between], domain=DOMAIN, **given | {"out_halo": 0})
    window: dict[str, Any] = {**FUSED_WINDOW, "in_halo": 0, "out_halo": 0}
    window |= {name: given[name] for name in ("in_height", "in_width")}
    outputs = [f"{between}/pooled", f"{between}/places"]
    return relu, helper.make_node("MaxPool", [between], outputs, domain=DOMAIN, **window)


def _unblocked(blocked: npt.NDArray[Any], halo: int) -> npt.NDArray[Any]:
    """Blocked maps with a halo (kernels/blocked.h) -> [16 * B, C, H, W]; the last examples are padding."""
    inner = blocked[:, : blocked.shape[1] - (halo > 0), halo:, halo:]
    return inner.transpose(0, 4, 1, 2, 3).reshape(-1, *inner.shape[1:4])


def torch_step(
    module: nn.Module,
    layout: Layout,
    flat: Vector,
    mask: Mask,
    batch: tuple[npt.NDArray[np.float32], npt.NDArray[Any]],
    sides: list[npt.NDArray[np.generic]],
) -> dict[str, npt.NDArray[np.float64]]:
    """PyTorch's loss, gradients at the mask and batch statistics, by the names of the step graph."""
    masked = np.zeros_like(flat)
    masked[mask.indices] = flat[mask.indices]
    reference = copy.deepcopy(module).double().train()
    state = reference.state_dict()
    with torch.no_grad():
        for name, view in layout.views(masked).items():
            state[name].copy_(torch.from_numpy(view))
    for submodule in reference.modules():
        if isinstance(submodule, nn.BatchNorm1d | nn.BatchNorm2d):
            submodule.momentum = 1.0  # So that the running statistics are the batch's.
    with _SameSide(sides):
        logits = reference(torch.from_numpy(batch[0].astype(np.float64)))
    if batch[1].ndim == 1:
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch[1]))
    else:
        loss = nn.functional.mse_loss(logits, torch.from_numpy(batch[1].astype(np.float64)))
    loss.backward()  # type: ignore[no-untyped-call]
    found = {"loss": np.asarray(loss.item())}
    parameters = dict(reference.named_parameters())
    statistics = dict(reference.named_buffers())
    for piece in layout.pieces:
        if piece.role == STATISTIC:
            found[f"{piece.name}.batch"] = statistics[piece.name].numpy()
            continue
        gradient = parameters[piece.name].grad
        assert gradient is not None
        value = gradient.numpy()
        if piece.role == PRUNABLE:
            begin, end = count_below(mask.indices, [piece.offset, piece.end])
            value = value.reshape(-1)[mask.indices[begin:end] - piece.offset]
        found[f"{piece.name}.gradient"] = value
    return found


def differences(
    ours: dict[str, npt.NDArray[np.generic]], expected: dict[str, npt.NDArray[np.float64]]
) -> list[Difference]:
    """Compare by name. A tensor that is zero in exact arithmetic is compared with the largest gradient.

    So is one that nearly is: behind a norm, the few weights of a map at 10 % density only turn, and what
    cancels leaves rounding errors. PyTorch's own float32 misses such a gradient by 7e-5. What remains allowed
    is 1e-6 of the largest gradient, eight roundings.
    """
    scale = max(
        (float(np.abs(v).max()) for k, v in expected.items() if k.endswith(".gradient") and v.size),
        default=1.0,
    )
    found = []
    for name, value in expected.items():
        difference = float(np.linalg.norm(np.asarray(ours[name], np.float64).reshape(-1) - value.reshape(-1)))
        floor = 1e-2 * scale * max(value.size, 1) ** 0.5
        found.append(Difference(name, difference / max(float(np.linalg.norm(value)), floor)))
    return found
