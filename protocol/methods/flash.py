"""FLASH (Babakniya et al., 2023): layer densities from sparse warm-up on the clients, then one fixed mask.

    round 0     clients train for some epochs, prune, and report the density of each layer
    server      the mean densities, scaled to the target, make one mask:
                magnitude  the largest of each layer of the averaged model (as SparsyFed's authors do)
                random     as many at random, and training starts from the initial model (SPDST)
    from then   FedAvg within the mask

Deviations: the warm-up is dense with one global pruning at its end, where SPDST prunes and regrows in
each epoch; masks are not derived anew every r rounds (JMWST).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.layout import PRUNABLE, Layout
from protocol.method import TRAIN, Global, LocalTraining, Mean, Memory, Turn
from protocol.methods.fedavg import FedAvg
from protocol.pruning import densities, prune
from protocol.seeded import uniform
from protocol.sparse import Mask, SparseVector, num_kept, top_k

WARM_UP = "warm-up"


class Flash(FedAvg, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "flash"
    device_floats: ClassVar[int] = 2
    first_round: ClassVar[int] = 0

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]
    warmup_epochs: Annotated[int, msgspec.Meta(ge=1)] = 10
    mask: Literal["magnitude", "random"] = "magnitude"

    def stage(self, round_number: int) -> str:
        """Warm up once."""
        return WARM_UP if round_number == 0 else TRAIN

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train, or warm up: then the pruned weights and, behind them, each layer's density."""
        if turn.stage == TRAIN:
            return super().client(turn, received, local, memory)
        layout = local.layout
        trained = local.fit(received["weights"], num_steps=self.warmup_epochs * local.steps_per_epoch)
        pruned = prune(trained, layout, self.density)
        found = np.array(list(densities(pruned.mask, layout).values()), np.float32)
        size = layout.size + found.size
        indices = np.concatenate([pruned.mask.indices, np.arange(layout.size, size, dtype=np.int32)])
        return SparseVector(Mask(indices, size), np.concatenate([pruned.values, found]))

    # Server half

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """A model, and after the warm-up a density for each layer."""
        extra = len(layout.of_role(PRUNABLE)) if turn.stage == WARM_UP else 0
        return layout.size + extra, layout.num_prunable

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Make the mask, or add the mean delta."""
        if turn.stage == TRAIN:
            return super().aggregate(turn, current, mean, layout)
        shares = scaled(mean.values[layout.size :], layout, self.density)
        averaged = mean.values[: layout.size].astype(np.float32)
        scores = np.abs(averaged[: layout.num_prunable])
        if self.mask == "random":
            scores, averaged = uniform(layout.num_prunable, turn.seed, "flash"), current.weights
        kept = []
        for piece, share in zip(layout.of_role(PRUNABLE), shares, strict=True):
            kept.append(piece.offset + top_k(scores[piece.part], max(1, num_kept(share, piece.size))))
        mask = Mask.of_model(np.concatenate(kept), layout)
        return Global(SparseVector.of(averaged, mask).dense(), mask)


def scaled(shares: npt.NDArray[np.floating], layout: Layout, density: float) -> list[float]:
    """Scale layer densities to the model's density; what exceeds 1 goes to the other layers."""
    sizes = np.array([piece.size for piece in layout.of_role(PRUNABLE)], np.float64)
    found, wanted = np.clip(shares, 1e-6, 1.0), num_kept(density, layout.num_prunable)
    for _ in sizes:
        is_open = found < 1.0
        if not is_open.any():
            break
        left = wanted - sizes[~is_open].sum()
        found[is_open] = np.minimum(1.0, found[is_open] * left / (found * sizes)[is_open].sum())
    return [float(share) for share in found]
