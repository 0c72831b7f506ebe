"""Bitmaps and varints of indices, and compression: what the sections of a body are made of.

Every function here takes the length that the header implies, and raises MalformedMessage for bytes
that are not exactly what its counterpart writes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from protocol.errors import MalformedMessage
from protocol.sparse import Indices

ZSTD_LEVEL = 3
MAX_WINDOW_BYTES = 8 << 20  # Level 3 needs 2 MiB; a frame may claim gigabytes.
MAX_VARINT_BYTES = 5  # Of an int32 gap.

# Indices


def bitmap_bytes(num_prunable: int) -> int:
    """Return the length of a bitmap: its last byte may have bits to spare, all zero."""
    return (num_prunable + 7) // 8


def encode_bitmap(indices: Indices, num_prunable: int) -> bytes:
    """Return one bit for each position, the first in bit 0."""
    stored = np.zeros(num_prunable, np.bool_)
    stored[indices] = True
    return np.packbits(stored, bitorder="little").tobytes()


def decode_bitmap(data: bytes | memoryview, nnz: int, num_prunable: int) -> Indices:
    """Return the positions of the `nnz` bits that are set."""
    stored = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stored[num_prunable:].any() or int(np.count_nonzero(stored)) != nnz:
        raise MalformedMessage(f"the bitmap does not have {nnz} positions within {num_prunable}")
    return np.flatnonzero(stored).astype(np.int32)


def encode_gaps(indices: Indices) -> bytes:
    """Return how many positions each index skips, as LEB128 varints in byte planes.

    A varint has seven bits a byte, low ones first; bit 7 says that it goes on. All first bytes come
    first, then the second bytes of those that have one, and so on: 7 % smaller after zstd than the
    same varints one by one (11 M positions, density 0.01), and each plane is one NumPy step.
    """
    planes = []
    rest = np.diff(indices, prepend=np.int32(-1)) - 1
    while rest.size:
        goes_on = rest >= 0x80
        planes.append(((rest & 0x7F) | np.where(goes_on, 0x80, 0)).astype(np.uint8).tobytes())
        rest = rest[goes_on] >> 7
    return b"".join(planes)


def decode_gaps(data: bytes | memoryview, nnz: int, num_prunable: int) -> Indices:
    """Return the `nnz` positions; increasing by construction, and below `num_prunable`."""
    coded = np.frombuffer(data, np.uint8)
    gaps = np.zeros(nnz, np.uint32)
    going_on = np.arange(nnz, dtype=np.int32)  # Which varints have a byte in the next plane.
    for k in range(MAX_VARINT_BYTES):
        if not going_on.size:
            break
        plane, coded = coded[: going_on.size], coded[going_on.size :]
        if plane.size != going_on.size:
            raise MalformedMessage("the gaps are truncated")
        if k and not bool(plane.all()):
            raise MalformedMessage("a varint is longer than it need be")
        if k == MAX_VARINT_BYTES - 1 and int(plane.max()) >= 1 << 32 - 7 * k:
            raise MalformedMessage("a varint does not fit in 32 bits")
        gaps[going_on] |= (plane.astype(np.uint32) & np.uint32(0x7F)) << np.uint32(7 * k)
        going_on = going_on[plane >= 0x80]
    if going_on.size or coded.size:
        raise MalformedMessage(f"the gaps are not {nnz} varints")
    return positions_after(gaps, num_prunable)


def positions_after(gaps: npt.NDArray[np.uint32], size: int) -> Indices:
    """Return the positions that skip so many others each: increasing, and checked to be below `size`."""
    if int(gaps.sum(dtype=np.int64)) + gaps.size > size:
        raise MalformedMessage(f"the gaps lead beyond the {size} positions")
    return np.cumsum(gaps.view(np.int32) + np.int32(1), dtype=np.int32) - np.int32(1)


# Compression


def compress(raw: bytes) -> bytes:
    """Return the bytes as a zstd frame, or as they are where that is not shorter."""
    coded = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(raw)
    return coded if len(coded) < len(raw) else raw


def decompress(coded: bytes | memoryview, raw_length: int) -> bytes | memoryview:
    """Return exactly `raw_length` bytes, or raise.

    The frame's own content size is compared before anything is allocated: python-zstandard ignores
    max_output_size once a frame declares its size (one call allocated 256 MiB where 1 MiB was
    allowed). After that the output buffer has this size, and libzstd cannot write beyond it.
    """
    if len(coded) == raw_length:
        return coded
    try:
        frame = zstandard.get_frame_parameters(coded)
        if frame.content_size != raw_length or frame.window_size > MAX_WINDOW_BYTES or frame.dict_id:
            raise MalformedMessage("a zstd frame declares another length, a large window or a dictionary")
        raw = zstandard.ZstdDecompressor().decompress(coded, raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedMessage(f"a section is not a zstd frame: {error}") from error
    if len(raw) != raw_length:
        raise MalformedMessage(f"a section of {len(raw)} bytes instead of {raw_length}")
    return raw
