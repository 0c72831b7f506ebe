"""What a graph's inputs and outputs are bound to: pieces of the flat buffers, and what saved activations need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.artifact import Manifest
from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, Piece, Vector
from protocol.sparse import Mask, count_below


def aligned(count: int) -> Vector:
    """Return zeros that begin on a cache line, as ONNX Runtime's buffers do: what crosses lines takes twice as long."""
    raw = np.zeros(count + 16, np.float32)
    return raw[(-raw.ctypes.data // 4) % 16 :][:count]


@dataclass(frozen=True)
class Slices:
    """Where each piece's stored entries lie in `values`, and their positions within the piece."""

    parts: Mapping[str, slice]
    indices: Mapping[str, npt.NDArray[np.int32]]

    @classmethod
    def of(cls, mask: Mask, manifest: Manifest) -> Slices:
        """Cut a model's mask into pieces.

        Raises:
            ArtifactError: an entry that is never pruned is not stored.
        """
        parts: dict[str, slice] = {}
        indices: dict[str, npt.NDArray[np.int32]] = {}
        for piece in manifest.layout.pieces:
            begin, end = (int(n) for n in count_below(mask.indices, [piece.offset, piece.end]))
            parts[piece.name] = slice(begin, end)
            if piece.role == PRUNABLE:
                indices[piece.name] = mask.indices[begin:end] - np.int32(piece.offset)
            elif end - begin != piece.size:
                raise ArtifactError(f"the mask lacks entries of {piece.name!r}, which is never pruned")
        return cls(parts, indices)


class Pruning:
    """What a graph with saved activations is given and returns for each layer (export/saved.py)."""

    def __init__(self, layers: list[Piece]) -> None:
        self.layers = layers
        self.keep = np.ones(len(layers), np.float32)
        self.threshold = np.zeros(len(layers), np.float32)
        self._used = np.zeros(len(layers), np.float32)
        self._is_convolution = np.asarray([len(piece.shape) == 4 for piece in layers], bool)

    def bindings(self) -> Iterator[tuple[str, str, Vector]]:
        """Side, name and scalar of each."""
        for i, piece in enumerate(self.layers):
            for side, part, array in (
                ("input", "keep", self.keep),
                ("input", "threshold", self.threshold),
                ("output", "threshold_used", self._used),
            ):
                yield side, f"{piece.name}.{part}", array[i : i + 1].reshape(())

    def after_step(self) -> None:
        """A convolution's threshold stays."""
        np.copyto(self.threshold, self._used, where=self._is_convolution)
