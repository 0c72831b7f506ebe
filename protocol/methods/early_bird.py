"""The search of FedPaI-S (Wang et al., 2025, arXiv 2504.00308): dense rounds until the channels are clear.

FedPaI-S prunes channels, one set for all clients, found at the server with the criterion of Early-Bird
tickets (You et al., 2020, arXiv 1909.11957): after each round,

    gamma = |scales of all batch norms|, one for each channel
    mask  = gamma > sorted(gamma)[floor(p * number of channels)]
    emerged: the newest mask differs from each of the four before it in at most a tenth of the channels

and then the run ends. Its weights.npz says which channels matter; the network that is left is made by
`sparsefleet export --weights RUN/weights.npz --keep SHARE --importance bn-scale --ranking global`, which keeps a
channel in each layer and one width in each residual stage, and is trained with FedAvg: smaller messages and
no masks. Two artifacts, two runs: a device never changes its graph within a run.

At the start all scales are equal and no mask means anything, hence at least five rounds. `slimming` adds the
L1 penalty on the scales of Network Slimming (Liu et al., 2017), which the tickets' authors use and the
prototype of FedPaI does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError
from protocol.layout import Layout, Vector
from protocol.method import Global, LocalStep, LocalTraining, Mean, Memory, Turn
from protocol.methods.fedavg import FedAvg
from protocol.sparse import SparseVector

MASKS = "channel_masks"  # Of Global.state: [up to WINDOW, channels], the newest last.
WINDOW = 5
Bits = npt.NDArray[np.bool_]


class EarlyBird(FedAvg, frozen=True):
    """The method's hyperparameters."""

    name: ClassVar[str] = "fedpai_s"
    device_floats: ClassVar[int] = 2

    channels_pruned: Annotated[float, msgspec.Meta(gt=0, lt=1)]  # p; 98 % of the parameters need about 0.86.
    distance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    slimming: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # Of the penalty's subgradient, e.g. 1e-4.

    @property
    def tolerates_staleness(self) -> bool:
        """Masks of five rounds are compared."""
        return False

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train, with the penalty on the scales if there is one; return what changed."""
        weights = received["weights"]
        step = Slimming(scales(local.layout), self.slimming) if self.slimming else None
        return SparseVector(weights.mask, local.fit(weights, step).values - weights.values)

    # Server half

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start dense.

        Raises:
            ConfigError: the model has no batch norm.
        """
        if not scales(layout).size:
            raise ConfigError(
                f"method {self.name!r} ranks channels by batch norm scales; this model has none"
            )
        return super().begin(layout, initial)

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Add the mean delta; note which channels the scales would keep now."""
        following = super().aggregate(turn, current, mean, layout)
        mask = channel_mask(np.abs(following.weights[scales(layout)]), self.channels_pruned)
        masks = np.vstack([*current.state.get(MASKS, np.empty((0, mask.size), np.bool_)), mask])
        return replace(following, state={MASKS: masks[-WINDOW:]})

    def is_finished(self, current: Global) -> bool:
        """Whether the channels have emerged."""
        masks = current.state.get(MASKS, np.empty((0, 0)))
        return len(masks) == WINDOW and all(difference(masks[-1], old) <= self.distance for old in masks[:-1])


class Slimming(LocalStep):
    """Adds s sign(gamma) to the gradient of the scales."""

    def __init__(self, places: npt.NDArray[Any], strength: float) -> None:
        self._places, self._strength = places, np.float32(strength)

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """The gradient of loss and penalty; the model is dense, so entries are where the layout says."""
        g[self._places] += self._strength * np.sign(v[self._places])
        return g


def scales(layout: Layout) -> npt.NDArray[np.int64]:
    """Return the positions of all batch norms' scales: of what has a running mean beside it."""
    names = {piece.name for piece in layout.pieces}
    found = [
        np.arange(piece.offset, piece.end)
        for piece in layout.pieces
        if piece.name.endswith(".weight") and f"{piece.name.removesuffix('weight')}running_mean" in names
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def channel_mask(gamma: Vector, share: float) -> Bits:
    """Return which channels are above the share of them that leaves."""
    kept: Bits = gamma > np.sort(gamma)[int(share * gamma.size)]
    return kept


def difference(a: Bits, b: Bits) -> float:
    """Return the share of channels that only one of two masks keeps: 0 to 1."""
    return float(np.mean(a != b))
