"""Magnitude-pruned messages (Grativol Ribeiro et al., 2023, arXiv 2310.14693), in b bits if wanted.

Both directions carry the largest weights only; what was pruned trains on from zero, without masks:

    down    the server's mean, pruned
    local   dense training; with bits = b on weights of b bits (quantise.py)
    up      the trained weights, pruned; with bits they are on the grid of b bits already

Every trained tensor takes part in one global sort, scales and biases of norms included; strictly
smaller magnitudes than the threshold are zeroed, so ties survive. bits = 1 is BinaryConnect, whose
uploads are signs. Pruning and bits together are the combination that the paper leaves open.

The codec carries values on a grid of b bits without loss where its format has as many bits; the
server averages what it decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.layout import Layout, Vector
from protocol.method import Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import support
from protocol.quantise import Quantised
from protocol.sparse import Mask, SparseVector, num_kept


class Magnitude(Method, frozen=True):
    """The method's hyperparameters; the pruning rate is 1 - density."""

    name: ClassVar[str] = "magnitude"
    trains_dense: ClassVar[bool] = True
    device_floats: ClassVar[int] = 3

    density: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    bits: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0  # Of prunable weights in training; 0: float32.

    # Server half

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Prune before sending."""
        return {"weights": self.pruned(current.weights, layout)}

    @property
    def unequal_steps(self) -> bool:
        """Uploads are averaged by examples."""
        return True

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train densely, prune, quantise."""
        layout = local.layout
        dense = SparseVector(Mask.full(layout.size), received["weights"].dense())
        step = Quantised(self.bits, dense.mask, layout) if self.bits else None
        return self.quantised(self.pruned(local.fit(dense, step).values, layout), layout)

    def pruned(self, weights: Vector, layout: Layout) -> SparseVector:
        """Zero what is smaller than the threshold, over all that is trained."""
        count = layout.num_trainable
        magnitudes = np.abs(weights[:count])
        num_pruned = count - num_kept(self.density, count)
        made = weights.copy()
        if num_pruned < count:
            threshold = np.partition(magnitudes, num_pruned)[num_pruned]
            made[:count][magnitudes < threshold] = 0.0
        return SparseVector.of(made, support(made, layout))

    def quantised(self, model: SparseVector, layout: Layout) -> SparseVector:
        """Return the weights as the pass sees them."""
        if not self.bits:
            return model
        step, count = Quantised(self.bits, model.mask, layout), model.mask.num_below(layout.num_trainable)
        values = np.concatenate([step.weights(model.values[:count]), model.values[count:]])
        return SparseVector(model.mask, values)

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the mean, unpruned: that is what is evaluated."""
        weights = mean.values.astype(np.float32)
        return Global(weights, support(weights, layout))

    def model(self, current: Global, layout: Layout) -> Global:
        """The mean, in as many bits as the clients train."""
        return Global(self.quantised(current.vector, layout).dense(), current.mask)
