"""Top-K of the update with error feedback (Aji and Heafield, 2017; Stich et al., 2018).

A client uploads the largest entries of what changed plus what it could not send before, and keeps
the rest. What was sent but not averaged, since it came late or was lost, stays in the rest too
(protocol/commit.py). The model and the way down are dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.commit import promise, settle
from protocol.layout import Layout
from protocol.method import Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import Scope, prune
from protocol.sparse import SparseVector


class GradientTopK(Method, frozen=True):
    """The share of the update's entries that travels."""

    name: ClassVar[str] = "gradient_topk"
    commits: ClassVar[bool] = True
    device_floats: ClassVar[int] = 4

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]
    scope: Scope = "global"

    @property
    def tolerates_staleness(self) -> bool:
        """Uploads are changes."""
        return True

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train; send the largest entries of delta and residual."""
        layout, weights = local.layout, received["weights"]
        kept = settle(memory, turn)
        residual = np.array(memory.get("residual", np.zeros(layout.num_prunable)), np.float32)
        if kept is not None:
            residual[kept["indices"]] -= kept["values"]
        update = local.fit(weights).values - weights.values
        update[: layout.num_prunable] += residual
        memory["residual"] = update[: layout.num_prunable]
        sent = local.as_sent(prune(SparseVector(weights.mask, update), layout, self.density, self.scope))
        count = sent.mask.num_below(layout.num_prunable)
        promise(memory, turn, indices=sent.mask.indices[:count], values=sent.values[:count])
        return sent

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Add the mean."""
        return Global((current.weights + mean.values).astype(np.float32), current.mask)
