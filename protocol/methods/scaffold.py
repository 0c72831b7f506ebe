"""SCAFFOLD (Karimireddy et al., 2020, Algorithm 1, option II): control variates against client drift.

    local step   y <- y - eta (g(y) - c_i + c)
    then         c_i+ = c_i - c + (x - y) / (K eta)        K: number of local steps
    upload       y - x and c_i+ - c_i
    server       x += eta_g mean(y - x),    c += |S| / N mean(c_i+ - c_i)

c is the mean of all c_i, for as long as a c_i changes only by what the server averaged
(protocol/commit.py). Both directions carry two vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from protocol.commit import promise, settle
from protocol.layout import Layout, Vector
from protocol.messages import Training
from protocol.method import Global, LocalStep, LocalTraining, Mean, Memory, Method, Turn, refuse_momentum
from protocol.sparse import Mask, SparseVector
from protocol.stack import stack, stacked_size, unstack


class Scaffold(Method, frozen=True):
    """The method's hyperparameter."""

    name: ClassVar[str] = "scaffold"
    commits: ClassVar[bool] = True
    device_floats: ClassVar[int] = 20

    server_learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # eta_g

    def check(self, training: Training, download_values: str) -> None:
        """c_i+ is the mean local gradient for plain SGD only."""
        refuse_momentum(self.name, training)

    # Server half

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start with c = 0."""
        return Global(initial, Mask.full(layout.size), {"control": np.zeros(layout.size, np.float32)})

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Send x and c."""
        control = SparseVector(current.mask, current.state["control"])
        return {"weights": current.vector, "control": control}

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """X and c."""
        return ("weights", "control")

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Take corrected local steps; upload how far x and c_i moved."""
        layout, training = local.layout, turn.training
        x, c, count = received["weights"], received["control"].values, local.layout.num_trainable
        kept = settle(memory, turn)
        c_i = np.asarray(memory.get("control", np.zeros(layout.size, np.float32)))
        if kept is not None:
            c_i = c_i + kept["moved"]
        memory["control"] = c_i

        y = local.fit(x, Corrected((c - c_i)[:count]))
        num_steps = training.local_epochs * local.steps_per_epoch
        moved = (x.values - y.values) / np.float32(num_steps * training.learning_rate) - c
        moved[count:] = 0.0  # Statistics have no gradient.
        delta = SparseVector(x.mask, y.values - x.values)
        sent = local.as_sent(stack(delta, SparseVector(x.mask, moved), layout))
        promise(memory, turn, moved=unstack(sent.dense(), layout)[1])
        return sent

    # Server half

    def weight(self, turn: Turn, num_examples: int) -> int:
        """Clients count alike, as in the paper."""
        return 1

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """Two vectors."""
        return stacked_size(layout)

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Move x and c; statistics are averaged."""
        delta, moved = unstack(mean.values, layout)
        delta[: layout.num_trainable] *= self.server_learning_rate
        control = current.state["control"] + mean.num_updates / turn.population * moved
        weights = (current.weights + delta).astype(np.float32)
        return Global(weights, current.mask, {"control": control.astype(np.float32)})


class Corrected(LocalStep):
    """Adds c - c_i to each gradient."""

    def __init__(self, correction: Vector) -> None:
        self._correction = correction

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """The corrected gradient."""
        g += self._correction
        return g
