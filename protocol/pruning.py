"""Which weights stay: the largest over the whole model, of each layer, or with a floor for each.

Over the whole model, layers with large fan-in lose everything near initialisation, where magnitudes
tell the fan-in and not the importance: the network then answers with chance. Keeping each layer's
own share, or at least a part of it, is the cure.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from protocol.layout import PRUNABLE, Layout
from protocol.sparse import Indices, Mask, SparseVector, count_below, num_kept, top_k

Scope = Literal["global", "layer"]

# Below so many prunable weights, ranking over the whole model near initialisation empties layers.
SMALL_MODEL = 1_000_000
SMALL_FLOOR = 0.5


def prune(
    vector: SparseVector, layout: Layout, density: float, scope: Scope = "global", floor: float = 0.0
) -> SparseVector:
    """Keep the largest magnitudes of the prunable entries, and all others. Zeros are not stored."""
    prunable = vector.mask.below(layout.num_prunable)
    places = largest(np.abs(vector.values[: prunable.nnz]), prunable, layout, density, scope, floor)
    places = places[vector.values[places] != 0]
    side = np.arange(prunable.nnz, vector.mask.nnz)
    kept = np.concatenate([places, side])
    return SparseVector(Mask(vector.mask.indices[kept], layout.size), vector.values[kept])


def largest(
    scores: npt.NDArray[np.floating],
    stored: Mask,
    layout: Layout,
    density: float,
    scope: Scope = "global",
    floor: float = 0.0,
) -> Indices:
    """Return the sorted places, among the stored prunable entries, of those with the largest scores.

    They are num_kept(density, layout.num_prunable) in all, or of each layer by its size; fewer where
    fewer are stored. With a floor, each layer keeps at least floor * density of itself, and the whole
    model the best of the rest.
    """
    parts = stored_parts(stored, layout)
    if scope == "layer":
        return _of_layers(scores, parts, density)
    kept = num_kept(density, layout.num_prunable)
    first = _of_layers(scores, parts, floor * density) if floor > 0 else np.empty(0, np.int32)
    rest = np.asarray(scores, np.float64).copy()
    rest[first] = -np.inf
    more = top_k(rest, min(kept, scores.size) - first.size)
    return np.sort(np.concatenate([first, more])).astype(np.int32)


def floor_of(given: float | None, layout: Layout) -> float:
    """Return the least share of the target density that each layer keeps: as given, else by the model's size."""
    if given is not None:
        return given
    return SMALL_FLOOR if layout.num_prunable < SMALL_MODEL else 0.0


def emptied(mask: Mask, layout: Layout) -> str:
    """Return what is wrong where layers have lost every weight, which can never come back; "" if none has."""
    empty = [name for name, density in densities(mask, layout).items() if density == 0]
    if not empty:
        return ""
    return f"no weight is left in {', '.join(empty)}: raise density or floor"


def stored_parts(mask: Mask, layout: Layout) -> list[tuple[slice, int]]:
    """Where each prunable tensor's entries are stored, and how many it has when dense."""
    pieces = layout.of_role(PRUNABLE)
    edges = count_below(mask.indices, [p.offset for p in pieces] + [layout.num_prunable])
    return [(slice(int(a), int(b)), p.size) for p, a, b in zip(pieces, edges, edges[1:], strict=False)]


def densities(mask: Mask, layout: Layout) -> dict[str, float]:
    """Return each prunable tensor's stored share."""
    names = (piece.name for piece in layout.of_role(PRUNABLE))
    parts = stored_parts(mask, layout)
    return {name: (s.stop - s.start) / size for name, (s, size) in zip(names, parts, strict=True)}


def support(values: npt.NDArray[np.floating], layout: Layout) -> Mask:
    """Return the mask of a dense model's prunable entries that are not zero."""
    return Mask.of_model(np.flatnonzero(values[: layout.num_prunable]), layout)


def _of_layers(
    scores: npt.NDArray[np.floating], parts: list[tuple[slice, int]], density: float
) -> npt.NDArray[np.int32]:
    found = [s.start + top_k(scores[s], max(1, num_kept(density, size))) for s, size in parts]
    return np.concatenate(found).astype(np.int32) if found else np.empty(0, np.int32)
