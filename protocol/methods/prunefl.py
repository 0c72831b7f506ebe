"""PruneFL (Jiang et al., 2022, arXiv 1909.12326): the mask that promises the fastest fall of the loss.

Every few rounds clients report the squares of their gradients at all weights, also those that are
not there. Removing or adding weight j changes the loss by about g_j^2 in a step, and takes time t, so the
server keeps the set A that maximises

    sum over A of g_j^2  /  (c + sum over A of t)

whose solution is the largest g_j^2 up to where the quotient stops growing. Each layer's larger weights
are in A in any case.

Deviations: t is the same for every weight, and c a share of the dense model's time, where the paper
measures both; the first mask is each layer's largest initial weights, where the paper trains and
prunes at one powerful client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.layout import Layout, Vector
from protocol.method import TRAIN, Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import largest, prune
from protocol.sparse import Indices, Mask, SparseVector, num_kept, top_k
from protocol.stack import stack, stacked_size, unstack

ADJUST = "adjust"


class PruneFL(Method, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "prunefl"
    trains_dense: ClassVar[bool] = True
    device_floats: ClassVar[int] = 6

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]  # Of the first mask, and the largest later.
    every: Annotated[int, msgspec.Meta(ge=1)] = 10  # Rounds between adjustments.
    prunable: Annotated[float, msgspec.Meta(ge=0, le=1)] = (
        0.3  # Share of a layer's weights that may go: the smallest.
    )
    overhead: Annotated[float, msgspec.Meta(gt=0)] = 0.05  # c, as a share of the time of all weights.

    def stage(self, round_number: int) -> str:
        """Adjust now and then."""
        return ADJUST if round_number % self.every == 0 else TRAIN

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start with the largest of each layer."""
        pruned = prune(SparseVector(Mask.full(layout.size), initial), layout, self.density, "layer")
        return Global(pruned.dense(), pruned.mask)

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train; when the mask is adjusted also report the squared gradients of all weights."""
        layout, weights = local.layout, received["weights"]
        trained = local.fit(weights)
        delta = SparseVector(weights.mask, trained.values - weights.values)
        if turn.stage == TRAIN:
            return delta
        dense = SparseVector(Mask.full(layout.size), trained.dense())
        squares = np.zeros(layout.size, np.float32)
        for batch in local.scoring_batches(turn.training.batch_size):
            squares += local.gradient(dense, batch) ** 2
        return stack(delta, SparseVector(dense.mask, squares), layout)

    # Server half

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """A delta, or a delta and the squares."""
        return super().upload_size(turn, layout) if turn.stage == TRAIN else stacked_size(layout)

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Add the mean delta; move the mask."""
        if turn.stage == TRAIN:
            return Global((current.weights + mean.values).astype(np.float32), current.mask)
        delta, squares = unstack(mean.values, layout)
        weights = (current.weights + delta).astype(np.float32)
        held = current.mask.below(layout.num_prunable)
        scores = np.abs(weights[held.indices])
        stays = held.indices[largest(scores, held, layout, (1 - self.prunable) * held.density, "layer")]
        mask = Mask.of_model(self.best(squares[: layout.num_prunable], stays), layout)
        return Global(SparseVector.of(weights, mask).dense(), mask)

    def best(self, squares: npt.NDArray[np.floating], stays: Indices) -> Indices:
        """Return the sorted positions that maximise the quotient, those that stay in any case among them."""
        size, others = squares.size, squares.copy()
        others[stays] = -1.0
        gains = squares[stays].sum() + np.cumsum(np.sort(others)[::-1][: size - stays.size])
        quotients = gains / (self.overhead * size + stays.size + np.arange(1, gains.size + 1))
        most = max(num_kept(self.density, size) - stays.size, 0)
        added = top_k(others, min(int(np.argmax(quotients)) + 1 if gains.size else 0, most))
        return np.sort(np.concatenate([stays, added])).astype(np.int32)
