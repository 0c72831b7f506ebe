"""FedAvg (McMahan et al., 2017, Algorithm 1): local SGD, then a weighted mean of the deltas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from protocol.layout import Layout
from protocol.method import Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.sparse import SparseVector


class FedAvg(Method, frozen=True):
    """The dense baseline; learning rate and epochs belong to the task."""

    name: ClassVar[str] = "fedavg"

    @property
    def fixed_mask(self) -> bool:
        """All weights, always."""
        return True

    @property
    def tolerates_staleness(self) -> bool:
        """Uploads are changes."""
        return True

    @property
    def unequal_steps(self) -> bool:
        """Uploads are averaged by examples."""
        return True

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train and return what training changed."""
        weights = received["weights"]
        return SparseVector(weights.mask, local.fit(weights).values - weights.values)

    # Server half

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Add the mean delta."""
        return Global((current.weights + mean.values).astype(np.float32), current.mask)
