"""FedAvg (McMahan et al., 2017, Algorithm 1): local SGD, then a weighted mean of the deltas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np

from protocol.layout import Layout, Vector
from protocol.method import TRAIN, Global, LocalTraining, Mean, Memory
from protocol.sparse import Mask, SparseVector


class FedAvg(msgspec.Struct, frozen=True):
    """The dense baseline; learning rate and epochs belong to the task."""

    name: ClassVar[str] = "fedavg"
    first_round: ClassVar[int] = 1
    fixed_mask: ClassVar[bool] = True

    def stage(self, round_number: int) -> str:
        """Every round trains."""
        return TRAIN

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start dense."""
        return Global(initial, Mask.full(layout.size))

    def broadcast(self, stage: str, current: Global, initial: Vector) -> dict[str, SparseVector]:
        """Send the global weights."""
        return {"weights": current.vector}

    # Client half

    def inputs(self, stage: str, memory: Memory) -> tuple[str, ...]:
        """The global weights."""
        return ("weights",)

    def client(
        self, stage: str, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train and return what training changed."""
        weights = received["weights"]
        return SparseVector(weights.mask, local.fit(weights).values - weights.values)

    # Server half

    def weight(self, stage: str, num_examples: int) -> int:
        """Weigh each client by its examples."""
        return num_examples

    def upload_size(self, stage: str, layout: Layout) -> tuple[int, int]:
        """A delta of the whole model."""
        return layout.size, layout.num_prunable

    def aggregate(self, stage: str, current: Global, mean: Mean, layout: Layout) -> Global:
        """Add the mean delta."""
        return Global((current.weights + mean.values).astype(np.float32), current.mask)
