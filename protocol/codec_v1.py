"""Bodies of version 1, which are read but no longer written.

    magic, version, header length | header (msgpack) | indices | values | tail

The indices are those of the prunable prefix, coded in whichever way is smallest:

    full      every prunable position is stored                              0 bytes
    known     the receiver holds the mask; the header names its digest       0 bytes
    bitmap    one bit for each prunable position
    delta     how many positions each index skips, as LEB128 varints

The values of the prunable prefix follow as float32 or float16. The tail is the side data that is
never pruned (biases, norms, statistics): always complete, and always float32, since float16 would
cost more accuracy there than it saves bytes.

Numbers are little-endian, and lie in byte planes: first the low byte of every value, last its sign
and exponent. Exponents repeat and mantissas do not, so zstd saves 14 % instead of 7 % (560,000
normal values, float32 and float16 alike). A section that zstd does not shrink is stored as it is.

Nothing a body declares is believed: `decode` is told the size of the model, derives every length
from it, and allocates nothing that the model itself would not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from protocol import header as header_of
from protocol.errors import LimitExceeded, MalformedMessage, UnknownMask
from protocol.layout import MAX_SIZE
from protocol.sections import (
    MAX_VARINT_BYTES,
    bitmap_bytes,
    decode_bitmap,
    decode_gaps,
    decompress,
)
from protocol.sparse import Mask, SparseVector
from protocol.values import decode_values, num_bytes

VERSION = 1

ValueFormat = Literal["f32", "f16"]
Coding = Literal["full", "known", "bitmap", "delta"]

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_VARINT_BYTES * MAX_SIZE)]
_Section = tuple[_Bytes, _Bytes]  # Length before and after zstd; equal: stored as it is.


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The facts of one body."""

    size: _Count
    num_prunable: _Count
    nnz: _Count  # Of the prunable prefix.
    values: ValueFormat
    coding: Coding
    indices_bytes: _Section
    values_bytes: _Section
    tail_bytes: _Section
    mask: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(_Header)


def is_version_1(data: bytes | memoryview) -> bool:
    """Whether these bytes begin as a body of version 1."""
    return bytes(data[:4]) == header_of.MAGIC + bytes([VERSION])


def decode(
    data: bytes | memoryview,
    size: int,
    num_prunable: int,
    masks: Mapping[str, Mask],
    limit: int,
) -> SparseVector:
    """Return the vector in a body of a model with `size` values, of which the first are prunable.

    `masks` are those this side holds, by digest, tail included. `max_bytes` defaults to the largest
    body that such a model can have.

    Raises:
        LimitExceeded: more bytes than `max_bytes`, or a header that is too long.
        UnknownMask: coded relative to a mask that is not in `masks`.
        MalformedMessage: anything else that `encode` would not have written.
    """
    if len(data) > limit:
        raise LimitExceeded(f"a body of {len(data)} bytes; at most {limit} are read")
    header, start = header_of.unpack(data, VERSION, _header_decoder)
    if (header.size, header.num_prunable) != (size, num_prunable):
        theirs = f"{header.size} values of which {header.num_prunable} are prunable"
        raise MalformedMessage(f"a body of another model: {theirs}; here {size} and {num_prunable}")
    _check_lengths(header, len(data) - start)

    sections = []
    for raw_length, coded_length in (header.indices_bytes, header.values_bytes, header.tail_bytes):
        sections.append(decompress(data[start : start + coded_length], raw_length))
        start += coded_length
    indices, values, tail = sections
    mask = _decode_mask(header, indices, masks)
    none = np.empty(0, np.float32)
    return SparseVector(
        mask,
        np.concatenate(
            [decode_values(values, (), header.values, none), decode_values(tail, (), "f32", none)]
        ),
    )


def describe(data: bytes | memoryview) -> dict[str, Any]:
    """Return the facts of a body's header, for reports; the sections are not looked at.

    Raises:
        LimitExceeded, MalformedMessage: the header cannot be read.
    """
    header, start = header_of.unpack(data, VERSION, _header_decoder)
    return {
        "size": header.size,
        "num_prunable": header.num_prunable,
        "nnz": header.nnz,
        "values": header.values,
        "coding": header.coding,
        "mask": header.mask.hex() if header.mask else None,
        "header_bytes": start,
        "indices_bytes": header.indices_bytes[1],
        "values_bytes": header.values_bytes[1],
        "tail_bytes": header.tail_bytes[1],
        "total_bytes": len(data),
        **header_of.bounds(header.num_prunable, header.nnz, header.values),
    }


# Lengths


def _check_lengths(header: _Header, num_following: int) -> None:
    """Check every declared length against what the model and nnz imply, before anything is allocated."""
    if header.num_prunable > header.size or header.nnz > header.num_prunable:
        raise MalformedMessage(f"{header.nnz} of {header.num_prunable} of {header.size} values is impossible")
    if header.coding == "full" and header.nnz != header.num_prunable:
        raise MalformedMessage(f"coded as full with {header.nnz} of {header.num_prunable} positions")
    if (header.coding == "known") != (header.mask is not None):
        raise MalformedMessage(f"coding {header.coding!r} and mask {header.mask!r} contradict each other")

    raw = header.indices_bytes[0]
    if header.coding == "delta":
        is_possible = header.nnz <= raw <= MAX_VARINT_BYTES * header.nnz
    else:
        is_possible = raw == (bitmap_bytes(header.num_prunable) if header.coding == "bitmap" else 0)
    if (
        not is_possible
        or header.values_bytes[0] != num_bytes(header.nnz, header.values)
        or header.tail_bytes[0] != (header.size - header.num_prunable) * 4
    ):
        raise MalformedMessage("the length of a section does not follow from the number of values")

    sections = (header.indices_bytes, header.values_bytes, header.tail_bytes)
    if any(coded > raw for raw, coded in sections):
        raise MalformedMessage("a section became longer by compression")
    if sum(coded for _, coded in sections) != num_following:
        raise MalformedMessage(f"{num_following} bytes after the header are more or fewer than the sections")


# Indices


def _decode_mask(header: _Header, data: bytes | memoryview, masks: Mapping[str, Mask]) -> Mask:
    """Return the whole mask: the prunable indices as coded, and the complete tail."""
    if header.coding == "full":
        return Mask.full(header.size)
    if header.mask is not None:
        mask = masks.get(header.mask.hex())
        if mask is None:
            raise UnknownMask(f"mask {header.mask.hex()} is not held here")
        nnz = mask.num_below(header.num_prunable)
        tail = header.size - header.num_prunable
        if (mask.size, nnz, mask.nnz - nnz) != (header.size, header.nnz, tail):
            raise MalformedMessage(f"mask {header.mask.hex()} does not have {header.nnz} prunable positions")
        return mask
    if header.coding == "bitmap":
        prunable = decode_bitmap(data, header.nnz, header.num_prunable)
    else:
        prunable = decode_gaps(data, header.nnz, header.num_prunable)
    side = np.arange(header.num_prunable, header.size, dtype=np.int32)
    return Mask(np.concatenate([prunable, side]), header.size)
