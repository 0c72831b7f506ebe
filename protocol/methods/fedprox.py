"""FedProx (Li et al., 2020): FedAvg whose local loss has the proximal term mu/2 |w - w_t|^2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.layout import Vector
from protocol.method import LocalStep, LocalTraining, Memory, Turn
from protocol.methods.fedavg import FedAvg
from protocol.sparse import SparseVector


class FedProx(FedAvg, frozen=True):
    """The method's hyperparameter."""

    name: ClassVar[str] = "fedprox"
    device_floats: ClassVar[int] = 2

    mu: Annotated[float, msgspec.Meta(ge=0)] = 0.01

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train near the global weights; return what changed."""
        weights = received["weights"]
        count = weights.mask.num_below(local.layout.num_trainable)
        trained = local.fit(weights, Proximal(weights.values[:count], self.mu))
        return SparseVector(weights.mask, trained.values - weights.values)


class Proximal(LocalStep):
    """Adds mu (w - w_t) to each gradient."""

    def __init__(self, centre: Vector, mu: float) -> None:
        self._centre, self._mu = centre, np.float32(mu)

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """The gradient of loss and term."""
        g += self._mu * (v - self._centre)
        return g
