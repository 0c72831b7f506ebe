"""ZeroFL (Qiu et al., ICLR 2022, arXiv 2208.02507): SWAT on the device, and sparser messages.

SWAT (Raihan and Aamodt, 2020): forward and backward pass run on each layer's largest weights, the
weight gradient sees only the largest saved inputs, and the gradient, dense, moves dense weights. The
first layer stays dense. Uploads keep more than the pass does (mask_ratio), so that what is about to
matter can travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from protocol.layout import PRUNABLE, Layout, Vector
from protocol.method import Global, LocalStep, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import prune, stored_parts, support
from protocol.sparse import Mask, SparseVector, num_kept, top_k


class ZeroFL(Method, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "zerofl"
    trains_dense: ClassVar[bool] = True
    device_floats: ClassVar[int] = 4

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]  # Of weights and saved inputs in a pass.
    mask_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0  # What uploads keep beyond that.
    upload: Literal["weights", "delta"] = "weights"  # The largest weights, or the largest changes.
    activation_pruning: bool = True

    @property
    def prunes_activations(self) -> bool:
        """As set."""
        return self.activation_pruning

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train dense weights by sparse passes; upload the largest."""
        layout = local.layout
        dense = SparseVector(Mask.full(layout.size), received["weights"].dense())
        step = SparsePass(layout, self.density)
        if self.activation_pruning and self.density < 1:
            step.activations = {piece.name: self.density for piece in layout.of_role(PRUNABLE)[1:]}
        trained = local.fit(dense, step)
        if self.upload == "delta":
            trained = SparseVector(dense.mask, trained.values - dense.values)
        return prune(trained, layout, min(1.0, self.density + self.mask_ratio))

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the mean, or add it."""
        base = current.weights if self.upload == "delta" else 0.0
        weights = (base + mean.values).astype(np.float32)
        return Global(weights, support(weights, layout))


class SparsePass(LocalStep):
    """Runs each pass on the largest weights of every layer but the first."""

    def __init__(self, layout: Layout, density: float) -> None:
        self._parts = stored_parts(Mask.full(layout.size), layout)[1:]
        self._density = density

    def weights(self, v: Vector) -> Vector:
        """The pruned weights."""
        made = v.copy()
        for part, size in self._parts:
            made[part] = 0.0
            kept = part.start + top_k(np.abs(v[part]), num_kept(self._density, size))
            made[kept] = v[kept]
        return made
