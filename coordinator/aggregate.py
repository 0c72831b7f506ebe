"""Updates folded in on arrival, in O(model) memory, bit-identical in any order of arrival.

Float addition is not associative, so a running float sum depends on which client the broker
happened to deliver first. The sum here is of integers: each weighted value is rounded once to a
multiple of 2^-32 and added in int64, which is exact and commutative. A run that is interrupted,
resumed or reordered ends in the same bits.

The rounding is 1.2e-10 of weight * value, below float32's own for every value above 2e-3 / weight.
The price is a range: the sum of weight * |value| must stay below 2^31, and an update that would
exceed it is rejected.
"""

from __future__ import annotations

import numpy as np

from protocol.errors import LimitExceeded
from protocol.method import Mean
from protocol.sparse import SparseVector

SCALE = 2.0**32
RANGE = 2.0**31


class Accumulator:
    """The running weighted sum of sparse vectors of one length."""

    def __init__(self, size: int, counts_coverage: bool = False) -> None:
        """Start at zero; on demand also count, for each entry, the weight of those that store it."""
        self._sum = np.zeros(size, np.int64)
        self._coverage = np.zeros(size, np.int64) if counts_coverage else None
        self._bound = 0.0  # Of any entry of the sum, over all vectors folded in.
        self.total_weight = 0
        self.num_updates = 0

    def fold(self, vector: SparseVector, weight: int) -> None:
        """Add weight * vector. Entries that it does not store count as zero.

        Raises:
            LimitExceeded: values too large for the exact sum; nothing was added.
        """
        largest = float(np.abs(vector.values).max(initial=0.0)) * weight
        if not self._bound + largest < RANGE:
            raise LimitExceeded(
                f"weight * value reaches {largest:.3g}, the exact sum holds {RANGE:.3g}: has the client diverged?"
            )
        self._bound += largest
        scaled = vector.values.astype(np.float64)
        scaled *= weight * SCALE
        self._sum[vector.mask.indices] += np.rint(scaled, out=scaled).astype(np.int64)
        if self._coverage is not None:
            self._coverage[vector.mask.indices] += weight
        self.total_weight += weight
        self.num_updates += 1

    def mean(self) -> Mean:
        """Return the weighted mean.

        Raises:
            ValueError: nothing was folded in. A round without updates keeps the old model, and only
                the caller knows that; a silent zero would look like convergence.
        """
        if self.total_weight == 0:
            raise ValueError("cannot aggregate a round without updates")
        coverage = None if self._coverage is None else self._coverage / self.total_weight
        return Mean(self._sum / (SCALE * self.total_weight), self.num_updates, coverage)
