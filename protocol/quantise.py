"""Weights with few bits in local training: the pass runs on quantised weights, SGD moves real ones.

The gradient passes straight through (Bengio et al., 2013): that of the quantised weights is applied
to the real ones.
"""

from __future__ import annotations

import numpy as np

from protocol.layout import Layout, Vector
from protocol.method import LocalStep
from protocol.pruning import stored_parts
from protocol.sparse import Mask


def uniform(v: Vector, bits: int) -> Vector:
    """Round to a symmetric signed grid of 2^bits - 1 levels, scaled by the largest magnitude. 0 stays 0."""
    largest = float(np.abs(v).max(initial=0.0))
    if largest == 0.0:
        return v.copy()
    step = np.float32(largest / (2 ** (bits - 1) - 1))
    return np.asarray(np.rint(v / step) * step, np.float32)


def binary(v: Vector) -> Vector:
    """Return the signs; +1 for 0."""
    return np.where(v < 0, np.float32(-1), np.float32(1))


class Quantised(LocalStep):
    """Quantisation-aware training: each prunable tensor on its own grid, with 1 bit on its signs.

    With 1 bit it is BinaryConnect (Courbariaux et al., 2015): real weights stay within -1..1.
    """

    def __init__(self, bits: int, mask: Mask, layout: Layout) -> None:
        self._bits = bits
        self._parts = [part for part, _ in stored_parts(mask, layout)]

    def weights(self, v: Vector) -> Vector:
        """The quantised weights; what is never pruned is as it is."""
        made = v.copy()
        for part in self._parts:
            made[part] = binary(v[part]) if self._bits == 1 else uniform(v[part], self._bits)
        return made

    def project(self, v: Vector) -> None:
        """Keep signs within reach."""
        if self._bits == 1:
            for part in self._parts:
                np.clip(v[part], -1, 1, out=v[part])
