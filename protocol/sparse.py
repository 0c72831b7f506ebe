"""Mask and SparseVector: which entries of a flat vector exist, and their values.

Indices are int32, strictly increasing. A layer's part of the vector is therefore contiguous and
already in CSR order (row = index // row_length): from the wire to the kernel to the aggregator
nothing is re-ordered. This file is the one place that checks the ordering and the range.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedMessage
from protocol.layout import MAX_SIZE, Layout, Vector

Indices = npt.NDArray[np.int32]


def count_below(indices: npt.NDArray[np.integer[Any]], ends: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Return how many of the increasing `indices` lie below each of `ends`.

    np.searchsorted by itself compares in a type that holds both, so that a plain int would make it copy all indices,
    at 8 bytes each: 88 MB for those of a dense ResNet-18.
    """
    found: npt.NDArray[np.intp] = np.searchsorted(indices, np.minimum(ends, MAX_SIZE).astype(indices.dtype))
    return found


@dataclass(frozen=True, eq=False)
class Mask:
    """The stored positions of a vector of length `size`.

    Raises:
        MalformedMessage: indices are not one-dimensional, not strictly increasing, or out of range.
    """

    indices: Indices
    size: int

    def __post_init__(self) -> None:
        """Check what everybody else relies on."""
        indices = np.ascontiguousarray(self.indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise MalformedMessage("mask indices must be a one-dimensional integer array")
        if indices.size and (indices[0] < 0 or indices[-1] >= self.size):
            raise MalformedMessage(f"mask index out of range 0..{self.size - 1}")
        if indices.size > 1 and not bool(np.all(indices[1:] > indices[:-1])):
            raise MalformedMessage("mask indices are not strictly increasing")
        indices = indices.astype(np.int32, copy=False)
        if indices.flags.writeable:
            indices = indices.view()
            indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)

    @classmethod
    def full(cls, size: int) -> Mask:
        """Every position: the dense model."""
        return cls(np.arange(size, dtype=np.int32), size)

    @classmethod
    def of_model(cls, prunable: npt.ArrayLike, layout: Layout) -> Mask:
        """The given prunable positions, and all positions that are never pruned."""
        side = np.arange(layout.num_prunable, layout.size, dtype=np.int32)
        return cls(np.concatenate([np.asarray(prunable, np.int32), side]), layout.size)

    @property
    def nnz(self) -> int:
        """Number of stored positions."""
        return int(self.indices.size)

    @property
    def density(self) -> float:
        """Stored share of all positions, 0..1; 0 for an empty vector."""
        return self.nnz / self.size if self.size else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of size and indices: names the mask on the wire."""
        found = hashlib.sha256(self.size.to_bytes(8, "little"))
        found.update(np.ascontiguousarray(self.indices, "<i4").data)  # No copy where integers are stored so.
        return found.hexdigest()

    def below(self, end: int) -> Mask:
        """The stored positions of the prefix of length `end`; the prunable ones, with num_prunable."""
        return Mask(self.indices[: self.num_below(end)], end)

    def num_below(self, end: int) -> int:
        """How many positions are stored in the prefix of length `end`."""
        return int(count_below(self.indices, end))

    def positions_of(self, other: Mask) -> npt.NDArray[np.intp]:
        """Return, for each index of `other`, its place among ours.

        Raises:
            ValueError: `other` is not a subset. Callers intersect first where that may happen.
        """
        places = np.searchsorted(self.indices, other.indices)
        inside = places < self.nnz
        if not (bool(inside.all()) and np.array_equal(self.indices[places], other.indices)):
            raise ValueError("the other mask is not a subset of this one")
        return places

    def intersection(self, other: Mask) -> Mask:
        """Positions stored in both."""
        return Mask(np.intersect1d(self.indices, other.indices, assume_unique=True), self.size)

    def union(self, other: Mask) -> Mask:
        """Positions stored in either."""
        return Mask(np.union1d(self.indices, other.indices), self.size)

    def same(self, other: Mask) -> bool:
        """Whether both store the same positions."""
        return self.size == other.size and np.array_equal(self.indices, other.indices)


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union, 0..1; 1 for two empty masks: they agree."""
    common = a.intersection(b).nnz
    either = a.nnz + b.nnz - common
    return common / either if either else 1.0


@dataclass(frozen=True, eq=False)
class SparseVector:
    """Values at the positions of a mask; everything else is zero.

    Raises:
        MalformedMessage: another number of values than positions.
    """

    mask: Mask
    values: Vector

    def __post_init__(self) -> None:
        """Check the length and make the values contiguous float32: kernels read them as they lie."""
        values = np.ascontiguousarray(self.values, np.float32)
        if values.shape != (self.mask.nnz,):
            raise MalformedMessage(f"{values.shape} values for {self.mask.nnz} mask indices")
        object.__setattr__(self, "values", values)

    @classmethod
    def of(cls, dense: Vector, mask: Mask) -> SparseVector:
        """Pick the masked entries of a dense vector; a copy."""
        return cls(mask, dense[mask.indices])

    def dense(self) -> Vector:
        """Return the vector with its zeros."""
        flat = np.zeros(self.mask.size, np.float32)
        flat[self.mask.indices] = self.values
        return flat

    def restrict(self, mask: Mask) -> SparseVector:
        """Return the values at `mask`; positions stored only there are zero, and stay stored."""
        if mask.same(self.mask):
            return SparseVector(mask, self.values.copy())
        places = np.searchsorted(self.mask.indices, mask.indices)
        places[places == self.mask.nnz] = 0
        values = np.zeros(mask.nnz, np.float32)
        if self.mask.nnz:
            found = self.mask.indices[places] == mask.indices
            values[found] = self.values[places[found]]
        return SparseVector(mask, values)


def top_k(scores: npt.NDArray[np.floating], k: int) -> Indices:
    """Return the sorted positions of the k largest scores.

    Exactly min(k, len) positions: among equal scores at the threshold the lowest positions win, so
    that two machines with the same scores get the same mask. Magnitude pruning passes np.abs(x).
    """
    k = min(max(int(k), 0), scores.size)
    if k == 0:
        return np.empty(0, np.int32)
    threshold = np.partition(scores, scores.size - k)[scores.size - k]
    above = np.flatnonzero(scores > threshold)
    ties = np.flatnonzero(scores == threshold)[: k - above.size]
    return np.sort(np.concatenate([above, ties])).astype(np.int32)


def num_kept(density: float, size: int) -> int:
    """How many weights a density keeps: size - round((1 - density) * size)."""
    return size - round((1.0 - density) * size)
