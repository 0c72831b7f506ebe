"""Top-K: plain local training, then the largest weights of each client; the baseline in SparsyFed's paper.

Local training is dense, so pruned weights grow back: every client may choose other ones, and the
mean has the union of what they chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.layout import Layout
from protocol.method import Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import Scope, floor_of, prune, support
from protocol.sparse import Mask, SparseVector


class TopK(Method, frozen=True):
    """Which weights are kept; the floor and the ramp are not in the papers."""

    name: ClassVar[str] = "topk"
    device_floats: ClassVar[int] = 2
    trains_dense: ClassVar[bool] = True

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]
    scope: Scope = "global"
    # Least share of the target density that each layer keeps; without a value 0.5 for small models, else 0.
    floor: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    ramp_rounds: Annotated[int, msgspec.Meta(ge=0)] = 0  # Until the target is reached; 0: at once.

    @property
    def unequal_steps(self) -> bool:
        """Uploads are averaged by examples."""
        return True

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train the dense model and return its largest weights."""
        layout = local.layout
        dense = SparseVector(Mask.full(layout.size), received["weights"].dense())
        return self.kept(local.fit(dense), turn, layout)

    def kept(self, trained: SparseVector, turn: Turn, layout: Layout) -> SparseVector:
        """Prune to the round's density."""
        floor = floor_of(self.floor, layout)
        return prune(trained, layout, self.density_in(turn.number), self.scope, floor)

    def density_in(self, round_number: int) -> float:
        """Fall with the cube of the remaining rounds (Zhu and Gupta, 2017)."""
        remaining = max(0.0, 1 - round_number / self.ramp_rounds) if self.ramp_rounds else 0.0
        return self.density + (1 - self.density) * remaining**3

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the mean as it is: the server does not prune."""
        weights = mean.values.astype(np.float32)
        return Global(weights, support(weights, layout))
