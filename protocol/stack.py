"""Two vectors of a model as one of twice the length, prunable entries first, and back.

An upload is one vector with a prunable prefix: a method that uploads two stacks them.

    [ first prunable | second prunable | first rest | second rest ]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.layout import Layout
from protocol.sparse import Mask, SparseVector


def stacked_size(layout: Layout) -> tuple[int, int]:
    """Return (length, prunable prefix)."""
    return 2 * layout.size, 2 * layout.num_prunable


def stack(first: SparseVector, second: SparseVector, layout: Layout) -> SparseVector:
    """Return both; each has the layout's length and stores all that is never pruned."""
    size, prunable = layout.size, layout.num_prunable
    cuts = [vector.mask.num_below(prunable) for vector in (first, second)]
    a, b = first.mask.indices, second.mask.indices
    indices = [a[: cuts[0]], b[: cuts[1]] + prunable, a[cuts[0] :] + prunable, b[cuts[1] :] + size]
    values = [
        first.values[: cuts[0]],
        second.values[: cuts[1]],
        first.values[cuts[0] :],
        second.values[cuts[1] :],
    ]
    return SparseVector(Mask(np.concatenate(indices), 2 * size), np.concatenate(values))


def unstack(
    values: npt.NDArray[np.floating], layout: Layout
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Return both dense vectors."""
    n, rest = layout.num_prunable, layout.size - layout.num_prunable
    parts = np.split(values, [n, 2 * n, 2 * n + rest])
    return np.concatenate([parts[0], parts[2]]), np.concatenate([parts[1], parts[3]])
