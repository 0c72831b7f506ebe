"""Sparse-ProxSkip (Meinhardt et al., 2024, arXiv 2405.20623), on ProxSkip (Mishchenko et al., 2022).

A control variate h_i cancels what drives client i away from the common optimum, so that many local
steps may lie between two rounds:

    k times     x_i <- x_i - gamma (grad f_i(x_i) - h_i)         k: geometric with mean 1/p, or 1/p
    upload      xs_i = TopK(x_i)
    mean        xbar = mean of xs_i                              its support is the union of theirs
    then        h_i <- h_i + p/gamma (xbar - xs_i),  x_i <- xbar

The sum of all h_i is zero for as long as every h_i moves by exactly what the server averaged, once
(protocol/commit.py). `control_sum` is that sum as the server can compute it; an alarm says when it
no longer vanishes. Absent clients keep their h_i, so partial participation preserves the sum; with
weights = "examples" it is the weighted sum.

Where the pruning stands is the variant:

    dense             nowhere: ProxSkip
    ste               at the upload, and each gradient is taken at TopK(x_i) and applied to x_i
    client            at the upload only
    local             x_i itself is pruned after every local step
    server            the mean is pruned: the sum breaks, and with it convergence. For comparison
    server-modified   the model is pruned, h follows the unpruned mean

Running statistics have no gradient and no control variate: they are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from protocol.commit import is_due, promise, settle
from protocol.errors import ConfigError
from protocol.layout import Layout, Vector
from protocol.messages import Training
from protocol.method import (
    CONTROL_SUM,
    Global,
    LocalStep,
    LocalTraining,
    Mean,
    Memory,
    Method,
    Turn,
    refuse_momentum,
)
from protocol.pruning import Scope, largest, prune, support
from protocol.seeded import geometric
from protocol.sparse import Mask, SparseVector

# Relative size of a sum that rounding cannot explain: float32 leaves 1e-5 after a hundred rounds.
TOLERANCE = 1e-3
PRUNED_UPLOADS = ("ste", "client", "local")


class ProxSkip(Method, frozen=True):
    """The method's hyperparameters. gamma is the task's learning rate."""

    name: ClassVar[str] = "proxskip"
    trains_dense: ClassVar[bool] = True
    commits: ClassVar[bool] = True
    keeps_means: ClassVar[bool] = True
    device_floats: ClassVar[int] = 10

    density: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    variant: Literal["dense", "ste", "client", "local", "server", "server-modified"] = "ste"
    communication_probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1  # p
    local_steps: Literal["geometric", "fixed"] = "fixed"
    scope: Scope = "layer"  # Of TopK; the paper does not say.
    weights: Literal["uniform", "examples"] = "uniform"
    clip: Annotated[float, msgspec.Meta(ge=0)] = (
        0.0  # Largest norm of a gradient; 0: any. Deep nets need one.
    )

    def check(self, training: Training, download_values: str) -> None:
        """The theory has plain SGD, and the sum of control variates needs the very mean."""
        refuse_momentum(self.name, training)
        if download_values != "f32":
            raise ConfigError(
                f"method {self.name!r} needs the mean without loss: wire.download_values = 'f32'"
            )

    # Server half

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Send the mean; server-modified sends its largest weights, and the mean for h alone."""
        vector = current.vector
        return {"weights": self.top(vector, layout) if self.variant == "server-modified" else vector}

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """The weights, and the mean of this client's last averaged round where h still needs it."""
        return ("weights", "mean") if is_due(memory, turn) else ("weights",)

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Move h by what was averaged, take the local steps, upload TopK."""
        layout, p = local.layout, self.communication_probability
        x = self.latent(received["weights"], layout)
        num_trained = x.mask.num_below(layout.num_trainable)
        kept = settle(memory, turn)
        h = np.asarray(memory.get("control", np.zeros(num_trained, np.float32)))
        if kept is not None:
            sent = SparseVector(Mask(kept["indices"], layout.size), kept["values"]).restrict(x.mask)
            mean = received["mean"].restrict(x.mask)
            h = h + float(kept["scale"]) * (mean.values - sent.values)[:num_trained]
        memory["control"] = h = h.astype(np.float32)

        step = ControlledStep(h, x.mask, layout, self)
        num_steps = geometric(p, turn.seed, "steps", turn.number)
        x_hat = local.fit(x, step, num_steps if self.local_steps == "geometric" else round(1 / p))
        sent = local.as_sent(self.top(x_hat, layout) if self.variant in PRUNED_UPLOADS else x_hat)
        scale = p / turn.training.learning_rate
        promise(memory, turn, indices=sent.mask.indices, values=sent.values, scale=scale)
        return sent

    def latent(self, weights: SparseVector, layout: Layout) -> SparseVector:
        """Return x_i at the start of a round: dense, since steps move what is pruned too."""
        if self.fixed_mask:
            return weights
        return SparseVector(Mask.full(layout.size), weights.dense())

    def top(self, x: SparseVector, layout: Layout) -> SparseVector:
        """TopK."""
        return prune(x, layout, self.density, self.scope)

    # Server half

    def weight(self, turn: Turn, num_examples: int) -> int:
        """The paper's objective weighs clients alike."""
        return num_examples if self.weights == "examples" else 1

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the mean, and add up what its difference from the uploads' does to the sum of all h_i."""
        weights = mean.values.astype(np.float32)
        if self.variant == "server":
            weights = self.top(SparseVector(Mask.full(layout.size), weights), layout).dense()
        scale = self.communication_probability / turn.training.learning_rate
        moved = mean.num_updates * scale * (weights - mean.values)[: layout.num_trainable]
        total = current.state.get(CONTROL_SUM, np.zeros(layout.num_trainable)) + moved
        size = np.asarray(mean.num_updates * scale * np.abs(weights).max(initial=0.0))
        mask = current.mask if self.fixed_mask else support(weights, layout)
        return Global(weights, mask, {CONTROL_SUM: total, "control_size": size})

    def model(self, current: Global, layout: Layout) -> Global:
        """TopK of the mean."""
        if self.variant == "dense":
            return current
        pruned = self.top(current.vector, layout)
        return Global(pruned.dense(), pruned.mask)

    def alarm(self, current: Global, layout: Layout) -> str:
        """The control variates must sum to zero."""
        found = float(np.abs(current.state.get(CONTROL_SUM, np.zeros(0))).max(initial=0.0))
        if found <= TOLERANCE * float(current.state.get("control_size", 0.0)):
            return ""
        return f"the control variates sum to {found:.3g}, not zero: the method no longer converges to the optimum"


class ControlledStep(LocalStep):
    """One local step: the gradient at x or TopK(x), less h."""

    def __init__(self, h: Vector, mask: Mask, layout: Layout, method: ProxSkip) -> None:
        self._h, self._layout, self._method = h, layout, method
        self._prunable = mask.below(layout.num_prunable)

    def weights(self, v: Vector) -> Vector:
        """TopK(x) with straight-through gradients, else x."""
        return self._top(v) if self._method.variant == "ste" else v

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """Clip, then correct."""
        clip = self._method.clip
        length = float(np.linalg.norm(g)) if clip else 0.0
        if length > clip:
            g *= np.float32(clip / length)
        g -= self._h
        return g

    def project(self, v: Vector) -> None:
        """Prune x itself."""
        if self._method.variant == "local":
            v[:] = self._top(v)

    def _top(self, v: Vector) -> Vector:
        count, method = self._prunable.nnz, self._method
        magnitudes = np.abs(v[:count])
        kept = largest(magnitudes, self._prunable, self._layout, method.density, method.scope)
        pruned = v.copy()
        pruned[:count] = 0.0
        pruned[kept] = v[kept]
        return pruned
