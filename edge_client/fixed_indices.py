"""Index arrays that nobody changes, so that the op library need not compare them with its plans in every step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]


class FixedIndices:
    """Read-only arrays, known as such to the op library as long as this object lives."""

    def __init__(self, library: Path, arrays: Iterable[Indices]) -> None:
        """Make the arrays read-only, and keep them alive; they must have no writable views.

        Raises:
            ValueError: one is not contiguous int32.
        """
        kept = list(arrays)
        for array in kept:
            if array.dtype != np.int32 or not array.flags.c_contiguous:
                raise ValueError(f"expected contiguous int32, got {array.dtype} {array.shape}")
        loaded = ctypes.CDLL(str(library))
        for function in (loaded.sparsefleet_fix_indices, loaded.sparsefleet_release_indices):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64], None
        for array in kept:
            array.flags.writeable = False
            loaded.sparsefleet_fix_indices(array.ctypes.data, array.size)
        self._release = weakref.finalize(self, _release, loaded, kept)

    def release(self) -> None:
        """End it before this object does; the arrays stay read-only."""
        self._release()


def _release(loaded: ctypes.CDLL, kept: list[Indices]) -> None:
    for array in kept:
        loaded.sparsefleet_release_indices(array.ctypes.data, array.size)
