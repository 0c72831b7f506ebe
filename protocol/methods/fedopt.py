"""Server optimisers: the mean delta is the gradient of a server that has momentum or adapts its rate.

FedAvgM (Hsu et al., 2019) and FedAdagrad, FedAdam, FedYogi (Reddi et al., 2021, Algorithm 2).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from protocol.layout import Layout
from protocol.method import Global, Mean, Turn
from protocol.methods.fedavg import FedAvg

Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class FedOpt(FedAvg, frozen=True):
    """The server's hyperparameters; clients train as in FedAvg."""

    name: ClassVar[str] = "fedopt"

    optimizer: Literal["momentum", "adagrad", "adam", "yogi"] = "momentum"
    server_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # The adaptive ones need about 0.01.
    beta1: Share = 0.9
    beta2: Share = 0.99
    tau: Annotated[float, msgspec.Meta(gt=0)] = 1e-3  # Degree of adaptivity: added to the root.

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the server's step; statistics are averaged."""
        count = layout.num_trainable
        delta, moved = mean.values[:count], mean.values.copy()
        m = current.state.get("m", np.zeros(count))
        v = current.state.get("v", np.full(count, self.tau**2))
        if self.optimizer == "momentum":
            m = self.beta1 * m + delta
            moved[:count] = self.server_learning_rate * m
            state = {"m": m}
        else:
            m, square = self.beta1 * m + (1 - self.beta1) * delta, delta**2
            if self.optimizer == "adagrad":
                v = v + square
            elif self.optimizer == "adam":
                v = self.beta2 * v + (1 - self.beta2) * square
            else:
                v = v - (1 - self.beta2) * square * np.sign(v - square)
            moved[:count] = self.server_learning_rate * m / (np.sqrt(v) + self.tau)
            state = {"m": m, "v": v}
        return Global((current.weights + moved).astype(np.float32), current.mask, state)
