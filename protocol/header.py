"""The header of a body of version 2, and whether its lengths can be true.

"SFV", 2, length of what follows | size, num_prunable, nnz, values, side, relation, sections, mask
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import LimitExceeded, MalformedMessage, UnknownMask
from protocol.indices import bound_bits
from protocol.layout import MAX_SIZE
from protocol.relations import Relation, most_index_bytes, table_bytes
from protocol.sparse import Mask
from protocol.values import SideFormat, ValueFormat, is_quantised, num_bytes

Facts = TypeVar("Facts")

MAGIC = b"SFV"
VERSION = 2
MAX_HEADER_BYTES = 256  # The longest has 210: digits of the largest model, and a digest.

_prefix = struct.Struct("<3sBH")
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=8 * MAX_SIZE)]
_Section = tuple[_Bytes, _Bytes]  # Length before and after zstd; equal: stored as it is.


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The facts of one body."""

    size: _Count
    num_prunable: _Count
    nnz: _Count  # Of the prunable prefix.
    values: ValueFormat
    side: SideFormat
    relation: Relation
    sections: tuple[_Section, _Section, _Section, _Section]  # parts, indices, values, side
    mask: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)


def write(header: Header) -> bytes:
    """Return the beginning of a body."""
    packed = _header_encoder.encode(header)
    return _prefix.pack(MAGIC, VERSION, len(packed)) + packed


def read(data: bytes | memoryview) -> tuple[Header, int]:
    """Return the header and where the sections begin.

    Raises:
        LimitExceeded: it is too long.
        MalformedMessage: it is not a header of this version.
    """
    return unpack(data, VERSION, _header_decoder)


def unpack(
    data: bytes | memoryview, version: int, decoder: msgspec.msgpack.Decoder[Facts]
) -> tuple[Facts, int]:
    """Return the header of a body of that version, of the decoder's type, and where the sections begin.

    Raises:
        LimitExceeded: it is too long.
        MalformedMessage: it is not a header of that version.
    """
    if len(data) < _prefix.size:
        raise MalformedMessage(f"a body of {len(data)} bytes is truncated")
    magic, found, length = _prefix.unpack_from(data)
    if magic != MAGIC:
        raise MalformedMessage("not a body: it begins with something else")
    if found != version:
        raise MalformedMessage(f"a body of version {found}; this side reads versions 1 and {VERSION}")
    if length > MAX_HEADER_BYTES:
        raise LimitExceeded(f"a body's header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    end = _prefix.size + length
    try:
        return decoder.decode(data[_prefix.size : end]), end
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedMessage(f"a body's header: {error}") from error


def check_lengths(
    header: Header,
    sizes_of: list[npt.NDArray[np.int64]],
    ends: npt.NDArray[np.int64],
    num_following: int,
) -> None:
    """Check every declared length against what the model and nnz imply, before anything is allocated.

    Raises:
        MalformedMessage: one is impossible; `num_following` bytes stand behind the header.
    """
    if header.nnz > header.num_prunable:
        raise MalformedMessage(f"{header.nnz} of {header.num_prunable} positions is impossible")
    (parts, _), (indices, _), (values, _), (side, _) = header.sections
    scales = 4 * len(ends) if is_quantised(header.values) else 0
    if (
        parts != table_bytes(sizes_of) + scales
        or indices > most_index_bytes(sizes_of)
        or values != num_bytes(header.nnz, header.values)
        or side != num_bytes(header.size - header.num_prunable, header.side)
    ):
        raise MalformedMessage("the length of a section does not follow from the number of values")
    if any(coded > raw for raw, coded in header.sections):
        raise MalformedMessage("a section became longer by compression")
    if sum(coded for _, coded in header.sections) != num_following:
        raise MalformedMessage(f"{num_following} bytes after the header are more or fewer than the sections")


def base_of(header: Header, masks: Mapping[str, Mask]) -> Mask | None:
    """Return the mask that the body refers to, None where it refers to none.

    Raises:
        UnknownMask: it is not among `masks`, which are by digest.
        MalformedMessage: it is not one of this model.
    """
    if (header.relation == "none") != (header.mask is None):
        raise MalformedMessage(f"relation {header.relation!r} and mask {header.mask!r} contradict each other")
    if header.mask is None:
        return None
    digest = header.mask.hex()
    if digest not in masks:
        raise UnknownMask(f"mask {digest} is not held here")
    mask = masks[digest]
    nnz = mask.num_below(header.num_prunable)
    if (mask.size, mask.nnz - nnz) != (header.size, header.size - header.num_prunable):
        raise MalformedMessage(f"mask {digest} is not one of this model")
    if header.relation == "known" and nnz != header.nnz:
        raise MalformedMessage(f"mask {digest} does not have {header.nnz} prunable positions")
    return mask


def bounds(num_prunable: int, nnz: int, values: str) -> dict[str, float]:
    """What a report compares a body with; see codec.describe."""
    index_bound = bound_bits(num_prunable, nnz) / 8 if nnz <= num_prunable else 0.0
    return {"index_bound_bytes": index_bound, "bound_bytes": index_bound + num_bytes(nnz, values)}
