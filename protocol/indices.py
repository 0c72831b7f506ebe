"""Positions <-> bytes: K of N positions in hardly more than the log2 C(N, K) bits that they need.

    nothing    none or all of them are stored: the count says which         0 bits
    bitmap     a bit for each position                                      N bits
    rice       how many positions each index skips, Golomb-Rice coded: the quotient by 2^k in unary, all
               of them one behind the other, then the k low bits of each    1.00 to 1.03 of the bound
    delta      the same as LEB128 varints, for zstd: where skips repeat, as in structured masks

Where more than half of the positions are stored, those that are not are coded. Each part (a layer) has
the coding that is smallest by computation, since densities differ by layer.
Measured on random positions: `sparsefleet bench codec`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedMessage
from protocol.sections import decode_bitmap, decode_gaps, encode_bitmap, encode_gaps, positions_after
from protocol.sparse import Indices

NOTHING, BITMAP, RICE, DELTA = CODINGS = range(4)
INVERTED = 0x80  # Added to the coding: of the positions that are not stored.


def bound_bits(size: int, count: int) -> float:
    """Return log2 C(size, count): what `count` of `size` positions need, all sets being as likely."""
    ln = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return max(0.0, ln / math.log(2))


def encode_part(indices: Indices, size: int) -> tuple[int, int, bytes]:
    """Return (coding, parameter, bytes) of increasing positions below `size`."""
    count = indices.size
    if count in (0, size):
        return NOTHING, 0, b""
    if 2 * count > size:
        coding, parameter, data = encode_part(_others(indices, size), size)
        return coding | INVERTED, parameter, data
    gaps = np.diff(indices, prepend=np.int32(-1)) - 1
    parameter, rice_bits = _rice_parameter(gaps)
    best = min(rice_bits, size)
    if 1.1 * _delta_bits(gaps) < best:
        return DELTA, 0, encode_gaps(indices)
    if size <= rice_bits:
        return BITMAP, 0, encode_bitmap(indices, size)
    return RICE, parameter, _encode_rice(gaps, parameter)


def most_bytes(size: int) -> int:
    """Return as many bytes as any coding of positions below `size` has, or more.

    At most half of the positions are coded, in a byte each and one more for each 128 that a gap skips.
    """
    return size // 2 + size // 128 + 2


def decode_part(data: memoryview, size: int, count: int, coding: int, parameter: int) -> Indices:
    """Return the positions; increasing and below `size` by construction.

    Raises:
        MalformedMessage: bytes that `encode_part` would not have written.
    """
    if coding & INVERTED:
        if 2 * count <= size or count == size:
            raise MalformedMessage(f"{count} of {size} positions are not coded by the others")
        return _others(decode_part(data, size, size - count, coding & ~INVERTED, parameter), size)
    if parameter and coding != RICE:
        raise MalformedMessage(f"coding {coding} has no parameter")
    if 2 * count > size and coding != NOTHING:
        raise MalformedMessage(f"{count} of {size} positions are coded by the others")
    if coding == NOTHING:
        if count not in (0, size) or len(data):
            raise MalformedMessage(f"{count} of {size} positions cannot be coded as nothing")
        return np.arange(count, dtype=np.int32)
    if coding == BITMAP:
        if len(data) != (size + 7) // 8:
            raise MalformedMessage("a bitmap has another length")
        return decode_bitmap(data, count, size)
    if coding == DELTA:
        return decode_gaps(data, count, size)
    if coding == RICE and count and parameter <= size.bit_length() and len(data) <= size // 8 + 2:
        return _decode_rice(data, size, count, parameter)
    raise MalformedMessage(f"no coding {coding} with parameter {parameter}")


def _rice_parameter(gaps: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The parameter of the fewest bits, and how many."""
    start = max(0, int(math.log2(max(1.0, math.log(2) * (float(gaps.mean()) + 1)))))
    bits = {k: int((gaps >> k).sum(dtype=np.int64)) + gaps.size * (k + 1) for k in range(start, start + 2)}
    best = min(bits, key=bits.__getitem__)
    return best, bits[best]


def _delta_bits(gaps: npt.NDArray[np.int32]) -> float:
    """About what zstd makes of the varints: Huffman codes of a bit or more, or runs of zeros."""
    counts = np.bincount(np.minimum(gaps, 128))
    share = counts[counts > 0] / gaps.size
    huffman = max(1.0, float(-(share * np.log2(share)).sum())) * gaps.size + 16 * float(counts[128:].sum())
    runs = 256 + 32 * float(gaps.size - counts[0])
    return min(huffman + 256, runs)


def _others(indices: Indices, size: int) -> Indices:
    """The positions below `size` that are not among these."""
    others = np.ones(size, np.bool_)
    others[indices] = False
    return np.flatnonzero(others).astype(np.int32)


def _encode_rice(gaps: npt.NDArray[np.int32], parameter: int) -> bytes:
    ends = np.cumsum((gaps >> parameter) + 1, dtype=np.int64) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.bool_)
    unary[ends] = True
    first = np.packbits(unary, bitorder="little").tobytes()
    return first + _pack_bits(gaps, parameter)


def _decode_rice(data: memoryview, size: int, count: int, parameter: int) -> Indices:
    low_bytes = (count * parameter + 7) // 8
    unary = np.unpackbits(
        np.frombuffer(data[: max(0, len(data) - low_bytes)], np.uint8), bitorder="little"
    ).view(np.bool_)
    if len(data) < low_bytes or np.count_nonzero(unary) != count or not bool(unary[-8:].any()):
        raise MalformedMessage(f"the quotients are not {count}")
    ends = np.flatnonzero(unary).astype(np.int32)
    quotients = np.diff(ends, prepend=np.int32(-1)) - np.int32(1)
    if int(quotients.max()) > size >> parameter:
        raise MalformedMessage(f"a quotient leads beyond the {size} positions")
    gaps = (quotients.view(np.uint32) << np.uint32(parameter)) | _unpack_bits(
        data[len(data) - low_bytes :], count, parameter
    )
    return positions_after(gaps, size)


def _pack_bits(values: npt.NDArray[np.int32], width: int) -> bytes:
    """The low `width` bits of each value, bit planes one behind the other."""
    bits = np.empty((width, values.size), np.bool_)
    for k in range(width):
        bits[k] = (values >> k) & 1
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _unpack_bits(data: memoryview, count: int, width: int) -> npt.NDArray[np.uint32]:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bool(bits[width * count :].any()):
        raise MalformedMessage("bits to spare are not zero")
    values = np.zeros(count, np.uint32)
    for k in range(width):
        values |= bits[k * count : (k + 1) * count].astype(np.uint32) << np.uint32(k)
    return values
