"""How much each weight matters before training: the scores of pruning at initialisation.

    grasp      theta (H g)      removing it leaves gradient flow (Wang et al., 2020)      labelled examples
    snip       |theta g|        removing it changes the loss (Lee et al., 2019)           labelled examples
    synflow    |theta| x paths  the flow through it, found iteratively (Tanaka et al., 2020)     no data
    magnitude  |theta|                                                                            no data
    random                                                                                        no data

The largest scores are kept. Scores of examples are scaled to a root mean square of 1, so that every
client has the same say in a mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError
from protocol.layout import PRUNABLE, Layout, Vector
from protocol.method import Batch, LocalTraining
from protocol.seeded import uniform
from protocol.sparse import Indices, SparseVector, num_kept, top_k

# Relative length of the finite difference. In float32, 1e-6 reproduces 97-99% of the exact mask;
# longer steps cross ReLU kinks (1e-4 leaves 10-20%).
STEP = 1e-6
SYNFLOW_ITERATIONS = 100  # As in its paper: one shot would empty layers.


def grasp(model: SparseVector, batches: Sequence[Batch], local: LocalTraining, temperature: float) -> Vector:
    """Return theta * (H g) of the prunable weights of a dense model.

    H g is a central difference of gradients, since ONNX Runtime has no second order.
    """
    num_prunable = local.layout.num_prunable
    theta = model.values[:num_prunable]

    def gradient(weights: Vector) -> Vector:
        moved = SparseVector(model.mask, np.concatenate([weights, model.values[num_prunable:]]))
        return _gradient(moved, batches, local, temperature)

    g = gradient(theta)
    length = float(np.linalg.norm(g))
    if length == 0.0:
        return np.zeros_like(theta)
    step = np.float32(STEP * float(np.linalg.norm(theta)) / length)
    hg = (gradient(theta + step * g) - gradient(theta - step * g)) / (2 * step)
    return _scaled(theta * hg)


def snip(model: SparseVector, batches: Sequence[Batch], local: LocalTraining) -> Vector:
    """Return |theta * g| of the prunable weights of a dense model."""
    g = _gradient(model, batches, local, 1.0)
    return _scaled(np.abs(model.values[: local.layout.num_prunable] * g))


def without_data(score: str, layout: Layout, initial: Vector, density: float) -> Indices:
    """Return the prunable positions that a score without data keeps.

    Raises:
        ConfigError: synflow, and the layers are not one chain.
    """
    kept, theta = num_kept(density, layout.num_prunable), initial[: layout.num_prunable]
    if score == "magnitude":
        return top_k(np.abs(theta), kept)
    if score == "random":  # Of the initial weights: runs with other seeds get other masks.
        return top_k(uniform(layout.num_prunable, hashlib.sha256(initial.tobytes()).hexdigest()), kept)
    alive = np.abs(theta).astype(np.float64)
    for iteration in range(1, SYNFLOW_ITERATIONS + 1):
        share = density ** (iteration / SYNFLOW_ITERATIONS)
        found = top_k(_path_sums(alive, layout), num_kept(share, layout.num_prunable))
        pruned = np.zeros_like(alive)
        pruned[found] = alive[found]
        alive = pruned
    return found


def _path_sums(alive: npt.NDArray[np.float64], layout: Layout) -> npt.NDArray[np.float64]:
    """Return each weight's |theta| times all paths from the inputs to it and from it to the outputs.

    |theta| times the gradient of the outputs' sum, for inputs of one and norms that are identities.
    What padding takes away at the borders of maps is left in.
    """
    pieces = layout.of_role(PRUNABLE)
    layers = [alive[p.part].reshape(*p.shape[:2], -1) for p in pieces]
    flow, flows = np.ones(layers[0].shape[1]), []
    for piece, layer in zip(pieces, layers, strict=True):
        repeats, rest = divmod(layer.shape[1], len(flow))
        if rest:
            raise ConfigError(
                f"synflow follows one chain of layers, and {piece.name} takes {layer.shape[1]} values where "
                f"{len(flow)} come; use score = 'snip' for networks with branches"
            )
        flow = np.repeat(flow, repeats)  # Behind a flattening each map is so many features.
        flows.append(flow)
        flow = layer.sum(axis=2) @ flow
    back, found = np.ones(len(flow)), []
    for layer, flow in zip(reversed(layers), reversed(flows), strict=True):
        back = back.reshape(layer.shape[0], -1).sum(axis=1)  # Over the features of a map.
        found.append((layer * back[:, None, None] * flow[None, :, None]).reshape(-1))
        back = layer.sum(axis=2).T @ back
    return np.concatenate(found[::-1])


def _gradient(
    model: SparseVector, batches: Sequence[Batch], local: LocalTraining, temperature: float
) -> Vector:
    """Sum over the batches, of the prunable entries."""
    num_prunable = local.layout.num_prunable
    total = sum(local.gradient(model, batch, temperature)[:num_prunable] for batch in batches)
    return np.asarray(total, np.float32)


def _scaled(scores: Vector) -> Vector:
    scale = float(np.sqrt(np.mean(np.square(scores, dtype=np.float64))))
    return np.asarray(scores / scale if scale > 0 else scores, np.float32)
