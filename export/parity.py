"""Is the graph the network? Loss and every gradient are compared with PyTorch's autograd.

The comparison runs at several densities, with masked weights on PyTorch's side, and on a batch
whose size is no multiple of the 16 lanes. PyTorch computes in float64, so that the difference is
the graph's error alone.

Kinks need care. Among the ten million ReLUs of a ResNet-18 step a few inputs are so close to zero
that float32 rounding decides their sign, and each such sign moves gradients by 1e-3: PyTorch's own
float32 gradients miss its float64 ones by that much. So PyTorch is evaluated on the same side of
each kink as the graph (`_SameSide`), and a side may differ only where the input is next to zero.
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
from torch import nn
from torch.overrides import TorchFunctionMode

from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, STATISTIC, Layout, Vector
from protocol.sparse import Mask, top_k

TOLERANCE = 1e-4
# Share of a layer's largest input within which the sign is a matter of rounding.
NEXT_TO_ZERO = 1e-4
RELUS = {torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, nn.functional.relu}
DENSITIES = (1.0, 0.1)
BATCH = 19


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from PyTorch's: |ours - theirs| / |theirs|, Euclidean norms."""

    tensor: str
    relative: float


def check(
    step: onnx.ModelProto, module: nn.Module, layout: Layout, flat: Vector, num_classes: int, library: Path
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
        labels = np.arange(BATCH, dtype=np.int64) % num_classes
        outputs = session.run(None, feeds(layout, flat, mask, x, labels))
        ours = dict(zip((o.name for o in session.get_outputs()), outputs, strict=True))
        sides = [_unblocked(ours.pop(name), halo) > 0 for name, halo in kinks]
        expected = torch_step(module, layout, flat, mask, (x, labels), sides)
        for difference in differences(ours, expected):
            if not difference.relative <= TOLERANCE:
                raise ArtifactError(
                    f"{difference.tensor} differs from PyTorch by {difference.relative:.1e} (allowed {TOLERANCE:.0e}) "
                    f"at density {density}; the artifact was not written"
                )
            worst = max(worst, difference.relative)
    return worst


def random_mask(layout: Layout, density: float, rng: np.random.Generator) -> Mask:
    """A mask that keeps this share of the prunable weights at random."""
    kept = top_k(rng.random(layout.num_prunable), round(density * layout.num_prunable))
    return Mask.of_model(kept, layout)


def feeds(
    layout: Layout, flat: Vector, mask: Mask, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the step graph for a masked model."""
    fed: dict[str, npt.NDArray[Any]] = {"x": x, "labels": labels, "temperature": np.ones((), np.float32)}
    for piece in layout.pieces:
        if piece.role == PRUNABLE:
            begin, end = np.searchsorted(mask.indices, [piece.offset, piece.end])
            stored = mask.indices[begin:end]
            fed[piece.name] = flat[stored]
            fed[f"{piece.name}.indices"] = (stored - piece.offset).astype(np.int32)
        else:
            fed[piece.name] = flat[piece.part].reshape(piece.shape)
    return fed


class _SameSide(TorchFunctionMode):
    """Evaluates each ReLU on the side of zero that the graph took."""

    def __init__(self, sides: list[npt.NDArray[np.bool_]]) -> None:
        super().__init__()
        self._sides = iter(sides)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in RELUS:
            return func(*args, **(kwargs or {}))
        x = args[0]
        taken = next(self._sides, None)
        if taken is None:
            raise ArtifactError("the graph has fewer ReLUs than the module; the artifact was not written")
        side = torch.from_numpy(taken[: len(x)]).reshape(x.shape)
        differs = side != (x > 0)
        if bool((x.abs()[differs] > NEXT_TO_ZERO * x.abs().max()).any()):
            raise ArtifactError("a ReLU of the graph differs from PyTorch's; the artifact was not written")
        return x * side


def _with_kinks(step: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[str, int]]]:
    """Add every ReLU's output to the graph's outputs; return them in order of execution, with halo."""
    observed = onnx.ModelProto()
    observed.CopyFrom(step)
    halos = {
        node.output[0]: next((a.i for a in node.attribute if a.name == "out_halo"), 0)
        for node in step.graph.node
    }
    kinks = []
    for node in step.graph.node:
        if node.op_type in ("Relu", "Add"):  # These keep the halo of their input.
            halos[node.output[0]] = halos[node.input[0]]
        if node.op_type.endswith("Relu"):
            kinks.append((node.output[0], halos[node.output[0]]))
            observed.graph.output.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
            )
    return observed, kinks


def _unblocked(blocked: npt.NDArray[np.float32], halo: int) -> npt.NDArray[np.float32]:
    """[B, C, H + 2 * halo, W + 2 * halo, 16] -> [16 * B, C, H, W]; the last examples are padding."""
    inner = blocked[:, :, halo : blocked.shape[2] - halo, halo : blocked.shape[3] - halo]
    return inner.transpose(0, 4, 1, 2, 3).reshape(-1, *inner.shape[1:4])


def torch_step(
    module: nn.Module,
    layout: Layout,
    flat: Vector,
    mask: Mask,
    batch: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    sides: list[npt.NDArray[np.bool_]],
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
        if isinstance(submodule, nn.BatchNorm2d):
            submodule.momentum = 1.0  # So that the running statistics are the batch's.
    with _SameSide(sides):
        logits = reference(torch.from_numpy(batch[0].astype(np.float64)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch[1]))
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
            begin, end = np.searchsorted(mask.indices, [piece.offset, piece.end])
            value = value.reshape(-1)[mask.indices[begin:end] - piece.offset]
        found[f"{piece.name}.gradient"] = value
    return found


def differences(
    ours: dict[str, npt.NDArray[np.generic]], expected: dict[str, npt.NDArray[np.float64]]
) -> list[Difference]:
    """Compare by name. A tensor that is zero in exact arithmetic is compared with the largest gradient."""
    scale = max(
        (float(np.abs(v).max()) for k, v in expected.items() if k.endswith(".gradient") and v.size),
        default=1.0,
    )
    found = []
    for name, value in expected.items():
        difference = float(np.linalg.norm(np.asarray(ours[name], np.float64).reshape(-1) - value.reshape(-1)))
        floor = 1e-3 * scale * max(value.size, 1) ** 0.5
        found.append(Difference(name, difference / max(float(np.linalg.norm(value)), floor)))
    return found
