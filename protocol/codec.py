"""SparseVector <-> bytes: what a body looks like on the wire.

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

import struct
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import LimitExceeded, MalformedMessage, UnknownMask
from protocol.layout import MAX_SIZE, Vector
from protocol.sections import (
    MAX_VARINT_BYTES,
    bitmap_bytes,
    compress,
    decode_bitmap,
    decode_gaps,
    decompress,
    encode_bitmap,
    encode_gaps,
    from_planes,
    to_planes,
)
from protocol.sparse import Mask, SparseVector

MAGIC = b"SFV"
VERSION = 1
MAX_HEADER_BYTES = 256  # The longest has 197: digits of the largest model, and a digest.

ValueFormat = Literal["f32", "f16"]
Coding = Literal["full", "known", "bitmap", "delta"]
DTYPES: Mapping[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}

_prefix = struct.Struct("<3sBH")
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


def max_body_bytes(size: int) -> int:
    """Return more bytes than any body of a model with `size` values has: all values and a bitmap."""
    return 4 * size + size // 8 + 1024


def encode(
    vector: SparseVector, num_prunable: int, value_format: ValueFormat, known: Collection[str] = ()
) -> bytes:
    """Return the vector as a body. `known` are the digests of the masks that the receiver holds.

    Float16 rounds to nearest even.

    Raises:
        ValueError: our caller's fault, not the peer's: the tail is incomplete, a value is not finite,
            or too large for float16. Infinity would pass silently into the global model.
    """
    size = vector.mask.size
    if value_format not in get_args(ValueFormat):
        raise ValueError(f"unknown value format {value_format!r}")
    if not 0 <= num_prunable <= size:
        raise ValueError(f"{num_prunable} prunable positions of {size}")
    nnz = int(np.searchsorted(vector.mask.indices, num_prunable))
    if vector.mask.nnz - nnz != size - num_prunable:
        stored, needed = vector.mask.nnz - nnz, size - num_prunable
        raise ValueError(f"the tail is never pruned, but only {stored} of its {needed} positions are stored")

    coding, raw, coded = _code_indices(vector.mask, nnz, num_prunable, known)
    values = to_planes(_rounded(vector.values[:nnz], value_format))
    tail = to_planes(_rounded(vector.values[nnz:], "f32"))
    coded_values, coded_tail = compress(values), compress(tail)
    header = _header_encoder.encode(
        _Header(
            size=size,
            num_prunable=num_prunable,
            nnz=nnz,
            values=value_format,
            coding=coding,
            indices_bytes=(len(raw), len(coded)),
            values_bytes=(len(values), len(coded_values)),
            tail_bytes=(len(tail), len(coded_tail)),
            mask=bytes.fromhex(vector.mask.digest) if coding == "known" else None,
        )
    )
    return b"".join(
        [_prefix.pack(MAGIC, VERSION, len(header)), header, coded, coded_values, coded_tail],
    )


def decode(
    data: bytes | memoryview,
    size: int,
    num_prunable: int,
    masks: Mapping[str, Mask],
    max_bytes: int | None = None,
) -> SparseVector:
    """Return the vector in a body of a model with `size` values, of which the first are prunable.

    `masks` are those this side holds, by digest, tail included. `max_bytes` defaults to the largest
    body that such a model can have.

    Raises:
        LimitExceeded: more bytes than `max_bytes`, or a header that is too long.
        UnknownMask: coded relative to a mask that is not in `masks`.
        MalformedMessage: anything else that `encode` would not have written.
    """
    limit = max_body_bytes(size) if max_bytes is None else max_bytes
    if len(data) > limit:
        raise LimitExceeded(f"a body of {len(data)} bytes; at most {limit} are read")
    header, start = _read_header(data)
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
    return SparseVector(
        mask, np.concatenate([from_planes(values, DTYPES[header.values]), from_planes(tail, DTYPES["f32"])])
    )


def describe(data: bytes | memoryview) -> dict[str, Any]:
    """Return the facts of a body's header, for reports; the sections are not looked at.

    Raises:
        LimitExceeded, MalformedMessage: the header cannot be read.
    """
    header, start = _read_header(data)
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
    }


# Header


def _read_header(data: bytes | memoryview) -> tuple[_Header, int]:
    """Return the header and where the sections begin."""
    if len(data) < _prefix.size:
        raise MalformedMessage(f"a body of {len(data)} bytes is truncated")
    magic, version, length = _prefix.unpack_from(data)
    if magic != MAGIC:
        raise MalformedMessage("not a body: it begins with something else")
    if version != VERSION:
        raise MalformedMessage(f"a body of version {version}; this side reads version {VERSION}")
    if length > MAX_HEADER_BYTES:
        raise LimitExceeded(f"a body's header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    end = _prefix.size + length
    try:
        return _header_decoder.decode(data[_prefix.size : end]), end
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedMessage(f"a body's header: {error}") from error


def _check_lengths(header: _Header, num_bytes: int) -> None:
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
        or header.values_bytes[0] != header.nnz * DTYPES[header.values].itemsize
        or header.tail_bytes[0] != (header.size - header.num_prunable) * 4
    ):
        raise MalformedMessage("the length of a section does not follow from the number of values")

    sections = (header.indices_bytes, header.values_bytes, header.tail_bytes)
    if any(coded > raw for raw, coded in sections):
        raise MalformedMessage("a section became longer by compression")
    if sum(coded for _, coded in sections) != num_bytes:
        raise MalformedMessage(f"{num_bytes} bytes after the header are more or fewer than the sections")


# Indices


def _code_indices(
    mask: Mask, nnz: int, num_prunable: int, known: Collection[str]
) -> tuple[Coding, bytes, bytes]:
    """Return the smallest coding of the prunable indices, before and after zstd."""
    if nnz == num_prunable:
        return "full", b"", b""
    if nnz == 0:
        return "delta", b"", b""
    if known and mask.digest in known:
        return "known", b"", b""
    indices = mask.indices[:nnz]
    gaps = encode_gaps(indices)
    bitmap = encode_bitmap(indices, num_prunable)
    coded_gaps, coded_bitmap = compress(gaps), compress(bitmap)
    if len(coded_gaps) < len(coded_bitmap):
        return "delta", gaps, coded_gaps
    return "bitmap", bitmap, coded_bitmap


def _decode_mask(header: _Header, data: bytes | memoryview, masks: Mapping[str, Mask]) -> Mask:
    """Return the whole mask: the prunable indices as coded, and the complete tail."""
    if header.coding == "full":
        return Mask.full(header.size)
    if header.mask is not None:
        mask = masks.get(header.mask.hex())
        if mask is None:
            raise UnknownMask(f"mask {header.mask.hex()} is not held here")
        nnz = int(np.searchsorted(mask.indices, header.num_prunable))
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


# Values


def _rounded(values: Vector, value_format: ValueFormat) -> npt.NDArray[Any]:
    """Return the values in their format, all finite."""
    with np.errstate(over="ignore"):  # Looked for below, where it can be named.
        rounded = values.astype(DTYPES[value_format])
    is_finite = np.isfinite(rounded)
    if not bool(is_finite.all()):
        place = int(np.argmax(np.where(is_finite, 0, np.abs(values))))
        if not np.isfinite(values[place]):
            raise ValueError(f"value {values[place]} at stored position {place} is not finite")
        raise ValueError(f"the largest value, {values[place]}, is beyond the range of {value_format}")
    return rounded
