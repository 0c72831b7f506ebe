"""sparsefleet bench codec: bytes of a body beside the entropy bound, and the time to code and read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocol.codec import ValueFormat, decode, describe, encode
from protocol.sparse import Mask, SparseVector, num_kept
from tools.bench.timing import SECONDS, alternate


def measure(size: int, density: float, values: ValueFormat, seconds: float = SECONDS) -> dict[str, Any]:
    """Return the sizes of one random body without side data, and both times in CPU seconds."""
    rng = np.random.default_rng(0)
    nnz = num_kept(density, size)
    stored = np.zeros(size, np.bool_)
    stored[rng.permutation(size)[:nnz]] = True
    mask = Mask(np.flatnonzero(stored).astype(np.int32), size)
    vector = SparseVector(mask, rng.normal(0, 0.02, nnz).astype(np.float32))
    data = encode(vector, size, values)
    times = alternate(
        {"encode": lambda: encode(vector, size, values), "decode": lambda: decode(data, size, size, {})},
        seconds=seconds,
    )
    facts = describe(data)
    return {
        "size": size,
        "density": density,
        "values": values,
        "index_bytes": facts["indices_bytes"],
        "bound_bytes": facts["index_bound_bytes"],
        "ratio": facts["indices_bytes"] / facts["index_bound_bytes"] if facts["index_bound_bytes"] else 1.0,
        "value_bytes": facts["values_bytes"],
        "total_bytes": facts["total_bytes"],
        "encode_s": times["encode"],
        "decode_s": times["decode"],
    }


def line(found: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{found['size']} positions, density {found['density']:g}, {found['values']}: {found['total_bytes']} bytes; "
        f"indices {found['index_bytes']} ({found['ratio']:.3f} of the bound); "
        f"encode {1e3 * found['encode_s']:.1f} ms, decode {1e3 * found['decode_s']:.1f} ms"
    )
