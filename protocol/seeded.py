"""What both sides draw alike: the initial model travels as a seed, and local steps as a round number.

NumPy promises the stream of a bit generator, but not how distributions are made of it, and the
logarithm of another libm may differ in the last bit. So everything here is made of Philox words by
integer arithmetic and one correctly rounded product: the same bits on every board.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from protocol.layout import DENSE, PRUNABLE, Layout, Piece, Vector


def generator(*parts: object) -> np.random.Generator:
    """Return a random generator seeded by what it is for (seed, client, round).

    Hashed, so that neither the order of rounds nor a restart changes what is drawn.
    """
    return np.random.default_rng(np.frombuffer(_digest(*parts), np.uint32))


def words(count: int, *parts: object) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit words that depend on what they are for alone."""
    key = int.from_bytes(_digest(*parts)[:16], "little")
    found: npt.NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
    return found


def uniform(count: int, *parts: object) -> npt.NDArray[np.float64]:
    """Return numbers in (0, 1), each a multiple of 2^-53 moved by half of that."""
    return ((words(count, *parts) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def geometric(probability: float, *parts: object) -> int:
    """Return how many trials the first success takes, 1 or more."""
    if probability >= 1.0:
        return 1
    return 1 + int(math.log(uniform(1, *parts)[0]) / math.log1p(-probability))


def initial(layout: Layout, seed: int, gain: float = 2.0) -> Vector:
    """Return the initial weights of a model.

    Prunable weights have variance gain / fan_in (He et al., 2015: gain 2 in front of a ReLU), scales
    of norms are 1, biases 0; what else is never pruned (positions, class tokens) has deviation 0.02.
    """
    flat = np.empty(layout.size, np.float32)
    for piece in layout.pieces:
        flat[piece.part] = _piece(piece, seed, gain)
    return flat


def _piece(piece: Piece, seed: int, gain: float) -> Vector | float:
    kind = piece.name.rpartition(".")[2]
    if piece.role == PRUNABLE:
        fan_in = math.prod(piece.shape[1:])
        return _normal(piece, seed, math.sqrt(gain / fan_in))
    if piece.role == DENSE and not kind.endswith("bias") and not (kind == "weight" and len(piece.shape) == 1):
        return _normal(piece, seed, 0.02)
    return 1.0 if kind in ("weight", "running_var") else 0.0


def _normal(piece: Piece, seed: int, deviation: float) -> Vector:
    """The sum of a word's four 16-bit parts: nearly normal, and cut at 3.5 deviations."""
    parts = words(piece.size, "initial", seed, piece.name).view(np.uint16).reshape(-1, 4)
    centred = parts.sum(axis=1, dtype=np.int64) - 2 * 65535
    # Each part is uniform on 0..65535: variance (2^32 - 1) / 12, and four of them a third of 2^32 - 1.
    unit = deviation / math.sqrt((2.0**32 - 1) / 3)
    return np.asarray(centred * unit, np.float32)


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
