"""LotteryFL (Li et al., 2020, arXiv 2008.03371): each client looks for its own winning ticket.

    client   takes the global weights at its mask; whenever they do well on its examples and the mask is
             denser than wanted, prunes some of the smallest and starts again from the initial weights;
             trains within the mask and uploads
    server   mean of each weight over the clients that store it; what nobody stored stays

Deviation: "well" is a mean training loss below a threshold, not an accuracy above one: a step graph
returns losses. ln 2 is where the right class gets a probability of one half on (geometric) average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.layout import Layout, Vector
from protocol.method import Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.sparse import Mask, SparseVector, num_kept, top_k


class LotteryFL(Method, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "lotteryfl"
    device_floats: ClassVar[int] = 6
    counts_coverage: ClassVar[bool] = True

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]  # Where a ticket is no longer pruned.
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2  # Share of the ticket that goes at a time.
    loss_threshold: Annotated[float, msgspec.Meta(gt=0)] = math.log(2)

    # Server half

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Send the weights, and what tickets are rewound to."""
        return {"weights": current.vector, "initial": SparseVector(Mask.full(initial.size), initial)}

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """The initial weights are needed for as long as the ticket may be pruned; draw them from a seed."""
        return ("weights",) if "done" in memory else ("weights", "initial")

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Prune and rewind where the ticket is good; train it."""
        layout = local.layout
        everything = np.arange(layout.num_prunable, dtype=np.int32)
        ticket = np.asarray(memory.get("ticket", everything))
        model = received["weights"].restrict(Mask.of_model(ticket, layout))
        if "done" not in memory and local.loss_of(model) < self.loss_threshold:
            least = num_kept(self.density, layout.num_prunable)
            kept = max(least, num_kept(1 - self.rate, ticket.size))
            ticket = ticket[top_k(np.abs(model.values[: ticket.size]), kept)]
            model = received["initial"].restrict(Mask.of_model(ticket, layout))
            memory["ticket"] = ticket
            if kept == least:
                memory["done"] = np.asarray(True)
        return local.fit(model)

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Mean over those that store a weight."""
        assert mean.coverage is not None
        weights = current.weights.astype(np.float64)
        np.divide(mean.values, mean.coverage, out=weights, where=mean.coverage > 0)
        return Global(weights.astype(np.float32), current.mask)
