"""A training step in PyTorch, for the lab: on a GPU where there is one.

The same contract as a device's runtime (edge_client/runtime.py), so that client, method, codec and
coordinator are those of the fleet and only gradients come from elsewhere. Weights are dense here: what
is compared is accuracy and bytes, never time or joules.

    buffers in host memory (values, gradient)  <->  one flat vector on the accelerator  ->  the module's tensors
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_client.runtime import Backend
from export.models import builder
from protocol.artifact import MSE, Manifest
from protocol.errors import ArtifactError, RuntimeMissing
from protocol.layout import STATISTIC
from protocol.method import Batch
from protocol.sparse import Mask, SparseVector

LEAST_SHARE = 1e-7  # As the op SaveActivation.


def choose_device(name: str) -> torch.device:
    """Return where to compute, as PyTorch calls it: "cpu", "cuda".

    TensorFloat-32 is switched off and cuDNN made deterministic: results are compared with the devices'.

    Raises:
        RuntimeMissing: PyTorch cannot use what was asked for.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # A build without CUDA asserts.
        raise RuntimeMissing(
            f"PyTorch {torch.__version__} cannot use {name!r}: {error}; choose cpu, or install a build for it"
        ) from error
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def torch_backend(device: torch.device) -> Backend:
    """Return what `simulate` is given; each client has a module of its own.

    On the CPU a step takes one thread: the lab runs several simulations at a time.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    return Backend(
        f"torch {torch.__version__} {device}", lambda manifest, folder, saved: TorchRuntime(manifest, device)
    )


class TorchRuntime:
    """A built-in model's forward and backward pass by autograd."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        """Build the module that the artifact was exported from.

        Raises:
            ArtifactError: no built-in model has this artifact's tensors.
        """
        self.name, self.kernels = f"torch {torch.__version__}", str(device)
        self._layout, self._device, self._is_regression = manifest.layout, device, manifest.loss == MSE
        module = builder(manifest.model)(manifest.input_shape, manifest.num_classes).to(device).train()
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for piece in self._layout.pieces:
            if piece.name not in tensors or tuple(tensors[piece.name].shape) != piece.shape:
                raise ArtifactError(
                    f"the built-in model {manifest.model!r} has no tensor {piece.name!r} of shape {list(piece.shape)}: "
                    "the torch back-end runs artifacts of built-in models that were not narrowed"
                )
        self._pruned: dict[str, _PrunedInput] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.momentum = 1.0  # So that the running statistics are the batch's.
            if type(layer) in (nn.Conv2d, nn.Linear):
                self._pruned[f"{name}.weight"] = layer.forward = _PrunedInput(layer)
        self._module = module
        self._mask: Mask | None = None
        self.values = self.gradient = np.empty(0, np.float32)

    def bind(self, model: SparseVector) -> None:
        """See edge_client.runtime.Runtime."""
        if self._mask is not None and model.mask.same(self._mask):
            self.values[:] = model.values
            return
        self._mask = model.mask
        self.values, self.gradient = model.values.copy(), np.zeros(model.mask.nnz, np.float32)
        self._stored = torch.from_numpy(model.mask.indices.astype(np.int64)).to(self._device)

    def step(self, batch: Batch, temperature: float = 1.0) -> float:
        """See edge_client.runtime.Runtime."""
        pieces = self._layout.pieces
        flat = torch.zeros(self._layout.size, device=self._device)
        flat[self._stored] = torch.from_numpy(self.values).to(self._device)
        flat.requires_grad_()
        parts = torch.split(flat, [piece.size for piece in pieces])
        tensors = {
            piece.name: part.detach().clone().view(piece.shape)
            if piece.role == STATISTIC
            else part.view(piece.shape)
            for piece, part in zip(pieces, parts, strict=True)
        }
        x, labels = (torch.from_numpy(np.ascontiguousarray(part)).to(self._device) for part in batch)
        logits = torch.func.functional_call(self._module, tensors, (x,)) / temperature
        loss_of = nn.functional.mse_loss if self._is_regression else nn.functional.cross_entropy
        loss = loss_of(logits, labels)
        (found,) = torch.autograd.grad(loss, flat)
        for piece in self._layout.of_role(STATISTIC):
            found[piece.part] = tensors[piece.name].reshape(-1)
        self.gradient[:] = found[self._stored].cpu().numpy()
        return loss.item()

    def prune_saved(self, keep: Mapping[str, float]) -> None:
        """See edge_client.runtime.PortableRuntime.prune_saved.

        Raises:
            ArtifactError: a named weight is not that of a convolution or linear layer.
        """
        if unknown := sorted(set(keep) - set(self._pruned)):
            raise ArtifactError(
                f"the torch back-end cannot prune what {unknown[0]!r} saves: no Conv2d or Linear has it"
            )
        for name, layer in self._pruned.items():
            layer.begin(float(np.float32(keep.get(name, 1.0))))  # As the op: 0.2 of 7600 is 1521.


class _PrunedInput:
    """A layer's forward; its weight gradient sees the largest of the input only (SparsyFed, 2504.05153).

    A convolution's threshold is found in the first batch and stays, a linear layer's in every batch.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Nothing is pruned yet."""
        self._layer, self._plain = layer, layer.forward
        self.begin(1.0)

    def begin(self, keep: float) -> None:
        """Keep this share from now on; 1 for all."""
        self._keep, self._threshold = keep, -1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer returns."""
        if self._keep >= 1:
            return self._plain(x)
        if self._threshold < 0 or isinstance(self._layer, nn.Linear):
            smallest = x.numel() - math.ceil(max(self._keep, LEAST_SHARE) * x.numel()) + 1
            self._threshold = float(x.detach().abs().flatten().kthvalue(smallest).values)
        layer, bias = self._layer, self._layer.bias
        y: torch.Tensor = _WeightGradientOfPruned.apply(  # type: ignore[no-untyped-call]
            x, layer.weight, self._without_bias, self._threshold
        )
        if bias is None:
            return y
        return y + (bias if isinstance(layer, nn.Linear) else bias.view(-1, 1, 1))

    def _without_bias(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if isinstance(self._layer, nn.Linear):
            return nn.functional.linear(x, weight)
        y: torch.Tensor = self._layer._conv_forward(x, weight, None)
        return y


class _WeightGradientOfPruned(torch.autograd.Function):
    """f(x, w) whose gradient of w is taken at x without what is below the threshold."""

    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        threshold: float,
    ) -> torch.Tensor:
        context.f = f
        context.save_for_backward(torch.where(x.abs() >= threshold, x, 0), weight)
        return f(x, weight)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        pruned, weight = context.saved_tensors
        with torch.enable_grad():
            # f is linear in each: the gradient of x depends on w alone, so the pruned x serves for both.
            at = pruned.detach().requires_grad_(), weight.detach().requires_grad_()
            of_x, of_weight = torch.autograd.grad(context.f(*at), at, gradients)
        return of_x, of_weight, None, None
