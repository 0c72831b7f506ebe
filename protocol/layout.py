"""Layout: where each tensor of a model lies in ONE flat float32 vector.

The vector has three parts, in this order:

    [ prunable weights | dense weights | statistics ]
      masks apply         biases, norms   running means and variances: averaged, never trained

so that "the prunable part" and "everything that is trained" are prefixes, and a slice of the
vector is a tensor without a copy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import ArtifactError

Vector = npt.NDArray[np.float32]

PRUNABLE, DENSE, STATISTIC = "prunable", "dense", "statistic"
ROLES = (PRUNABLE, DENSE, STATISTIC)

# Indices travel as int32, and a board with 8 GB cannot train more than this.
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Piece:
    """One tensor: its name in PyTorch, shape, role, and first position in the flat vector."""

    name: str
    shape: tuple[int, ...]
    role: str
    offset: int

    @property
    def size(self) -> int:
        """Number of values; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Position after the last value."""
        return self.offset + self.size

    @property
    def part(self) -> slice:
        """The piece's slice of the flat vector."""
        return slice(self.offset, self.end)


@dataclass(frozen=True)
class Layout:
    """All pieces of a model, ordered by role."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> Layout:
        """Build a layout from (name, shape, role); within a role the given order is kept.

        Raises:
            ArtifactError: repeated names, an unknown role, or more values than int32 can index.
        """
        given = list(tensors)
        if len({name for name, _, _ in given}) != len(given):
            raise ArtifactError("two tensors of the model have the same name")
        pieces: list[Piece] = []
        offset = 0
        for role in ROLES:
            for name, shape, tensor_role in given:
                if tensor_role == role:
                    pieces.append(Piece(name, tuple(int(n) for n in shape), role, offset))
                    offset = pieces[-1].end
        if len(pieces) != len(given):
            raise ArtifactError(f"a tensor has a role other than {', '.join(ROLES)}")
        if offset > MAX_SIZE:
            raise ArtifactError(f"the model has {offset} values; at most {MAX_SIZE} can be indexed")
        return cls(tuple(pieces))

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.pieces[-1].end if self.pieces else 0

    @cached_property
    def num_prunable(self) -> int:
        """Length of the prunable prefix."""
        return sum(p.size for p in self.pieces if p.role == PRUNABLE)

    @cached_property
    def num_trainable(self) -> int:
        """Length of the trained prefix: prunable and dense."""
        return sum(p.size for p in self.pieces if p.role != STATISTIC)

    @cached_property
    def by_name(self) -> Mapping[str, Piece]:
        """Pieces by name."""
        return {piece.name: piece for piece in self.pieces}

    def ends_of(self, num_prunable: int) -> tuple[int, ...]:
        """Where the prunable tensors end in a vector with such a prefix: a model's, or several behind each other.

        () for vectors that are no models.
        """
        if not self.num_prunable or num_prunable % self.num_prunable:
            return ()
        ends = [piece.end for piece in self.of_role(PRUNABLE)]
        copies = range(0, num_prunable, self.num_prunable)
        return tuple(begin + end for begin in copies for end in ends)

    def of_role(self, role: str) -> tuple[Piece, ...]:
        """The pieces of one role, in order."""
        return tuple(piece for piece in self.pieces if piece.role == role)

    def views(self, flat: Vector) -> dict[str, Vector]:
        """Return each tensor as a view into `flat`; no copy, writing writes through."""
        return {piece.name: flat[piece.part].reshape(piece.shape) for piece in self.pieces}

    def flatten(self, tensors: Mapping[str, npt.ArrayLike]) -> Vector:
        """Return one flat vector from named tensors.

        Raises:
            ArtifactError: a tensor is missing or has another shape; its name is in the text.
        """
        flat = np.empty(self.size, np.float32)
        for piece in self.pieces:
            if piece.name not in tensors:
                raise ArtifactError(f"tensor {piece.name!r} of the layout is missing")
            value = np.asarray(tensors[piece.name], np.float32)
            if value.shape != piece.shape:
                raise ArtifactError(f"tensor {piece.name!r} has shape {value.shape}, expected {piece.shape}")
            flat[piece.part] = value.reshape(-1)
        return flat

    def to_json(self) -> list[dict[str, Any]]:
        """Return the pieces for the manifest; offsets follow from the order."""
        return [{"name": p.name, "shape": list(p.shape), "role": p.role} for p in self.pieces]

    @classmethod
    def from_json(cls, pieces: list[dict[str, Any]]) -> Layout:
        """Rebuild a layout from its manifest entry.

        Raises:
            ArtifactError: an entry is not of the documented form.
        """
        try:
            return cls.of((str(p["name"]), tuple(int(n) for n in p["shape"]), str(p["role"])) for p in pieces)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the layout in the manifest is damaged: {error!r}") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form: two sides with the same digest mean the same vector."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
