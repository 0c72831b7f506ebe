"""Aggregation that some lying clients cannot steer: per entry, over those who store it.

    median     coordinate-wise median (Yin et al., 2018, arXiv 1803.01498)
    trimmed    coordinate-wise mean without the largest and smallest `trim` (same paper)
    clip       each update is pulled towards the median until it is no farther from it than `radius` times
               the median distance (centered clipping, Karimireddy et al., 2021, arXiv 2012.10333, with the
               median as the centre); then the weighted mean

A sparse mean counts entries that an update does not store as zero: it is the mean of those who store
an entry, times their share of the weight. So is this, with the robust location in place of their
mean; a median over zeros would remove whatever less than half of the clients store. Median and
trimmed mean do not weigh clients by their examples: a client says itself how many it has.

All updates of a round are kept until it closes: memory is O(cohort x stored entries), not O(model).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.aggregate import Accumulator
from protocol.method import Mean
from protocol.sparse import SparseVector, count_below

# Entries that are sorted at a time, times the number of updates.
BLOCK = 1 << 16
Doubles = npt.NDArray[np.float64]


class AggregationConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How updates become one."""

    rule: Literal["mean", "median", "trimmed", "clip"] = "mean"
    trim: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2  # Of the values of an entry, at each end.
    radius: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # In median distances.
    # After so many rejected updates a client is asked no more in this run.
    quarantine_after: Annotated[int, msgspec.Meta(ge=1)] = 3


class Robust:
    """Takes the place of an Accumulator."""

    def __init__(self, size: int, config: AggregationConfig) -> None:
        """Nothing is folded in."""
        self._exact = Accumulator(size, counts_coverage=True)
        self._size, self._config = size, config
        self._updates: list[tuple[SparseVector, int]] = []

    @property
    def total_weight(self) -> int:
        """Of the updates."""
        return self._exact.total_weight

    @property
    def num_updates(self) -> int:
        """How many were folded in."""
        return self._exact.num_updates

    def fold(self, vector: SparseVector, weight: int) -> None:
        """Keep an update.

        Raises:
            LimitExceeded: values too large for the exact sum; it was not kept.
        """
        self._exact.fold(vector, weight)
        self._updates.append((vector, weight))

    def mean(self) -> Mean:
        """Return the robust mean. The order in which updates arrived does not matter.

        Raises:
            ValueError: nothing was folded in.
        """
        found = self._exact.mean()
        assert found.coverage is not None  # It was asked for.
        location = self._locate()
        if self._config.rule == "clip":
            clipped = Accumulator(self._size)
            for vector, weight in self._clipped(location):
                clipped.fold(vector, weight)
            return Mean(clipped.mean().values, found.num_updates, found.coverage)
        return Mean(location * found.coverage, found.num_updates, found.coverage)

    def _locate(self) -> Doubles:
        """Median or trimmed mean of each entry, over those who store it; zero where nobody does."""
        trim = self._config.trim if self._config.rule == "trimmed" else None
        location = np.zeros(self._size)
        for begin in range(0, self._size, BLOCK):
            end = min(begin + BLOCK, self._size)
            # What is not stored sorts behind everything.
            values = np.full((len(self._updates), end - begin), np.inf, np.float32)
            for row, (vector, _) in zip(values, self._updates, strict=True):
                first, last = count_below(vector.mask.indices, [begin, end])
                row[vector.mask.indices[first:last] - begin] = vector.values[first:last]
            values.sort(axis=0)
            location[begin:end] = _middle(values, np.isfinite(values).sum(axis=0), trim)
        return location

    def _clipped(self, center: Doubles) -> list[tuple[SparseVector, int]]:
        around = [center[vector.mask.indices] for vector, _ in self._updates]
        distances = [
            float(np.linalg.norm(vector.values - at))
            for (vector, _), at in zip(self._updates, around, strict=True)
        ]
        radius = self._config.radius * float(np.median(distances))
        clipped = []
        for (vector, weight), at, distance in zip(self._updates, around, distances, strict=True):
            share = min(1.0, radius / distance) if distance > 0 else 1.0
            values = at + share * (vector.values - at)
            clipped.append((SparseVector(vector.mask, values.astype(np.float32)), weight))
        return clipped


def _middle(values: npt.NDArray[np.float32], counts: npt.NDArray[np.integer], trim: float | None) -> Doubles:
    """Of columns that are sorted, with `counts` values each: the mean of what trimming leaves, or the median."""
    cut = (counts - 1) // 2 if trim is None else (trim * counts).astype(np.int64)
    cut = np.maximum(cut, 0)
    place = np.arange(len(values))[:, None]
    stays = (place >= cut) & (place < counts - cut)
    total = np.where(stays, values, 0).sum(axis=0, dtype=np.float64)
    return np.asarray(total / np.maximum(counts - 2 * cut, 1), np.float64)
