"""FedDST (Bibikar et al., AAAI 2022, arXiv 2112.09824): clients move weights to where gradients are large.

    every few rounds   a client trains half of its epochs, drops its smallest weights in each layer, grows as
                       many where the loss pulls hardest (RigL, Evci et al., 2020), and trains the rest
    server             mean of each weight over the clients that store it, then the largest of all

The share that moves falls with a cosine to nothing at `last_adjustment`. The first mask is random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.layout import PRUNABLE, Layout, Vector
from protocol.method import TRAIN, Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import stored_parts
from protocol.saliency import without_data
from protocol.sparse import Mask, SparseVector, num_kept, top_k

ADJUST = "adjust"


class FedDST(Method, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "feddst"
    trains_dense: ClassVar[bool] = True
    counts_coverage: ClassVar[bool] = True
    device_floats: ClassVar[int] = 2

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]
    every: Annotated[int, msgspec.Meta(ge=1)] = 10  # Rounds between adjustments.
    last_adjustment: Annotated[int, msgspec.Meta(ge=1)] = 100  # Round.
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5  # Of a layer's weights that move at first.

    def stage(self, round_number: int) -> str:
        """Adjust now and then."""
        is_due = round_number % self.every == 0 and round_number <= self.last_adjustment
        return ADJUST if is_due else TRAIN

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start at a random mask."""
        mask = Mask.of_model(without_data("random", layout, initial, self.density), layout)
        return Global(SparseVector.of(initial, mask).dense(), mask)

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train; in between move what moves."""
        if turn.stage == TRAIN:
            return local.fit(received["weights"])
        num_steps = turn.training.local_epochs * local.steps_per_epoch
        trained = local.fit(received["weights"], num_steps=num_steps - num_steps // 2)
        return local.fit(self.moved(trained, turn, local), num_steps=num_steps // 2)

    def moved(self, model: SparseVector, turn: Turn, local: LocalTraining) -> SparseVector:
        """Drop the smallest and grow, from zero, where the gradient is largest, as many in each layer."""
        layout = local.layout
        share = self.share / 2 * (1 + math.cos(math.pi * turn.number / self.last_adjustment))
        dense = SparseVector(Mask.full(layout.size), model.dense())
        batches = local.scoring_batches(turn.training.batch_size)
        pull = np.abs(sum(local.gradient(dense, batch)[: layout.num_prunable] for batch in batches))
        kept, pieces = [], layout.of_role(PRUNABLE)
        for piece, (part, _) in zip(pieces, stored_parts(model.mask, layout), strict=True):
            count = part.stop - part.start
            move = min(round(share * count), piece.size - count)
            stay = top_k(np.abs(model.values[part]), count - move)
            staying = model.mask.indices[part][stay]
            pull[staying] = -1.0  # What was just dropped may return, as in RigL, and is as it was.
            kept += [staying, piece.offset + top_k(pull[piece.part], move)]
        return model.restrict(Mask.of_model(np.sort(np.concatenate(kept)), layout))

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Mean over those that store a weight; keep the largest."""
        assert mean.coverage is not None
        covered = mean.coverage > 0
        weights = np.divide(mean.values, mean.coverage, out=np.zeros_like(mean.values), where=covered)
        scores = np.where(covered, np.abs(weights), -1.0)[: layout.num_prunable]
        kept = top_k(scores, min(num_kept(self.density, layout.num_prunable), int((scores >= 0).sum())))
        mask = Mask.of_model(kept, layout)
        return Global(SparseVector.of(weights.astype(np.float32), mask).dense(), mask)
