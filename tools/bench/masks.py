"""Masks for measuring: random, with the same density in every layer or Erdos-Renyi-Kernel densities.

And how much arithmetic a mask leaves: FLOP density, the multiply-adds of the stored weights by those
of the dense network. The weight of a convolution counts once for each output pixel, so early layers
weigh more than their share of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from protocol.layout import PRUNABLE, Layout
from protocol.sparse import Mask, count_below, top_k

UNIFORM, ERK = "uniform", "erk"


def random_mask(layout: Layout, density: float, masks: str, rng: np.random.Generator) -> Mask:
    """Return a random mask; `masks` is "uniform" or "erk". Every tensor keeps at least one weight."""
    pieces = layout.of_role(PRUNABLE)
    shapes = [piece.shape for piece in pieces]
    densities = erk_densities(shapes, density) if masks == ERK else [density] * len(shapes)
    parts = [
        top_k(rng.random(piece.size), max(1, round(share * piece.size))) + piece.offset
        for piece, share in zip(pieces, densities, strict=True)
    ]
    return Mask.of_model(np.concatenate(parts), layout)


def erk_densities(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """Return each tensor's density after Erdos-Renyi-Kernel; together they keep `density`.

    A tensor's density is proportional to the sum of its dimensions over their product (Evci et al.,
    "Rigging the Lottery", ICML 2020). What exceeds 1 is capped, and the rest is shared out again among
    the others.
    """
    sizes = [math.prod(shape) for shape in shapes]
    share = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    wanted = density * sum(sizes)
    dense: set[int] = set()
    while True:
        rest = wanted - sum(sizes[i] for i in dense)
        free = [i for i in range(len(sizes)) if i not in dense]
        scale = rest / sum(share[i] * sizes[i] for i in free) if free else 0.0
        over = {i for i in free if scale * share[i] > 1.0}
        if not over:
            return [1.0 if i in dense else scale * share[i] for i in range(len(sizes))]
        dense |= over


def flop_density(mask: Mask, layout: Layout, pixels: Mapping[str, int]) -> float:
    """Return the mask's share of the dense multiply-adds; `pixels` are each prunable tensor's outputs."""
    stored = whole = 0
    for piece in layout.of_role(PRUNABLE):
        begin, end = count_below(mask.indices, [piece.offset, piece.end])
        stored += int(end - begin) * pixels[piece.name]
        whole += piece.size * pixels[piece.name]
    return stored / whole
