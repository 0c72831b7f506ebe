"""SparsyFed (Guastella et al., ICLR 2025, arXiv 2504.05153): zeros that stay, so that masks agree.

Weights are reparametrised (powerpropagation, Schwarz et al., 2021): clients train and exchange v, and

    theta = sign(v) |v|^beta        grad_v = beta |v|^(beta-1) grad_theta        beta > 1

At v = 0 the gradient vanishes, so a pruned weight never returns: we do not even store it, and
training is sparse from the second round on. Each client keeps the largest weights after training,
and the support of the mean shrinks to one that all agree upon. Of the input that is saved for a
layer's weight gradient, only as large a share is kept as the layer has weights.

The paper prunes over the whole model in round 1. On small models this empties layers, for ever:
the floor (topk.py), scope = "layer" and the ramp are our cures, and regrowth one for drift: a share
of weights, the same for all clients, is tried again each round at the smallest magnitude of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.layout import PRUNABLE, Layout, Vector
from protocol.method import Global, LocalStep, LocalTraining, Memory, Turn
from protocol.methods.topk import TopK
from protocol.pruning import densities, emptied, stored_parts
from protocol.seeded import words
from protocol.sparse import Mask, SparseVector

Exponents = npt.NDArray[np.float32] | float

LEAST_SHARE = 1e-7  # Of a saved input; the paper's code has it too.


class SparsyFed(TopK, frozen=True):
    """The method's hyperparameters. Weight decay acts on v; momentum is 0 in the paper."""

    name: ClassVar[str] = "sparsyfed"
    trains_dense: ClassVar[bool] = False
    device_floats: ClassVar[int] = 5

    beta: Annotated[float, msgspec.Meta(gt=1, le=4)] | Literal["spectral"] = 1.25
    activation_pruning: bool = True
    regrowth: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0  # Share of the kept weights, each round.

    @property
    def prunes_activations(self) -> bool:
        """As set."""
        return self.activation_pruning

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start at the v whose theta is the initial model."""
        model = SparseVector(Mask.full(layout.size), initial)
        count, v = layout.num_prunable, initial.copy()
        v[:count] = power(v[:count], 1 / np.asarray(self.exponents(model, layout)))
        return Global(v, model.mask)

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Send v; first the initial model, of which clients know v, and which a seed can replace."""
        if turn.number == 1:
            return {"initial": SparseVector(Mask.full(layout.size), initial)}
        return {"weights": current.vector}

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """V, or what it is made of."""
        return ("initial",) if turn.number == 1 else ("weights",)

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Train v on its support, and keep the largest."""
        layout = local.layout
        if "initial" in received:
            v = self.begin(layout, received["initial"].values).vector
        else:
            v = self.regrown(received["weights"], turn, layout)
        step = Powerpropagation(self.exponents(v, layout), v.mask.num_below(layout.num_prunable))
        if self.activation_pruning:
            shares = densities(v.mask, layout)
            step.activations = {name: max(d, LEAST_SHARE) for name, d in shares.items() if d < 1}
        return self.kept(local.fit(v, step), turn, layout)

    def regrown(self, v: SparseVector, turn: Turn, layout: Layout) -> SparseVector:
        """Try some pruned weights again: the same for all clients, so that no index need travel."""
        prunable = v.mask.below(layout.num_prunable)
        count = min(round(self.regrowth * prunable.nnz), layout.num_prunable - prunable.nnz)
        if count == 0:
            return v
        drawn = words(layout.num_prunable, turn.seed, "regrowth", turn.number)
        drawn[prunable.indices] = 0
        places = np.sort(np.argsort(drawn, kind="stable")[layout.num_prunable - count :]).astype(np.int32)
        grown = v.restrict(v.mask.union(Mask(places, layout.size)))
        smallest = np.abs(v.values[: prunable.nnz]).min()
        at = grown.mask.positions_of(Mask(places, layout.size))
        grown.values[at] = np.where(drawn[places] & np.uint64(1), smallest, -smallest)
        return grown

    def exponents(self, v: SparseVector, layout: Layout) -> Exponents:
        """Return beta: one number, or the spectral exponent of each stored prunable entry.

        The latter is 1 + mean(|W|) / sigma for each layer, with its largest singular value by one
        power iteration on |W|; 1 where a layer is empty.
        """
        if self.beta != "spectral":
            return float(self.beta)
        dense, found = np.abs(v.dense()), []
        parts = stored_parts(v.mask, layout)
        for piece, (stored, _) in zip(layout.of_role(PRUNABLE), parts, strict=True):
            matrix = dense[piece.part].reshape(piece.shape[0], -1).astype(np.float64)
            right = matrix.T @ (matrix @ np.ones(matrix.shape[1]))
            length = float(np.linalg.norm(right))
            sigma = float(np.linalg.norm(matrix @ right)) / length if length else np.inf
            found.append(np.full(stored.stop - stored.start, 1 + matrix.mean() / sigma, np.float32))
        return np.concatenate(found)

    # Server half

    def model(self, current: Global, layout: Layout) -> Global:
        """Theta of the averaged v."""
        v, count = current.vector, current.mask.num_below(layout.num_prunable)
        theta = v.values.copy()
        theta[:count] = power(theta[:count], self.exponents(v, layout))
        return Global(SparseVector(v.mask, theta).dense(), v.mask)

    def alarm(self, current: Global, layout: Layout) -> str:
        """A layer without weights can never get one again."""
        return emptied(current.mask, layout)


class Powerpropagation(LocalStep):
    """SGD on v with gradients at theta(v)."""

    def __init__(self, beta: Exponents, num_pruned: int) -> None:
        self._beta, self._count = beta, num_pruned

    def weights(self, v: Vector) -> Vector:
        """Theta; what is never pruned is as it is."""
        theta = v.copy()
        theta[: self._count] = power(v[: self._count], self._beta)
        return theta

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """The chain rule."""
        g[: self._count] *= self._beta * np.abs(v[: self._count]) ** (np.asarray(self._beta, np.float32) - 1)
        return g


def power(v: Vector, beta: npt.ArrayLike) -> Vector:
    """Return sign(v) |v|^beta."""
    return np.asarray(np.sign(v) * np.abs(v) ** np.asarray(beta, np.float32), np.float32)
