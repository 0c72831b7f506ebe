"""SparseVector <-> bytes: what a body looks like on the wire. docs/wire.md has it byte by byte.

    magic, version, header length | header (msgpack) | parts | indices | values | side

The prunable prefix is coded by what the receiver holds, whichever is smallest by computation:

    known     it holds this mask: its digest stands in the header, and no index travels
    subset    positions within the support of a mask that it holds
    change    positions of a mask that it holds that are stored no longer, and those that are stored anew
    none      positions of all; everything or nothing stored costs nothing

`ends` cuts the prefix into parts (layers), each with an index coding (indices.py) and value scales
(values.py) of its own. Both sides know them from the layout, so they do not travel. What is never
pruned (biases, norms, statistics) follows as side data, complete, in float32 or float16.

Nothing a body declares is believed: `decode` is told the size of the model and its parts, bounds
every length by them, and allocates nothing that the model itself would not need. Bodies of version 1
are read as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from protocol import codec_v1
from protocol import header as header_of
from protocol.errors import LimitExceeded, MalformedMessage
from protocol.header import Header
from protocol.layout import Vector
from protocol.relations import (
    decode_streams,
    encode_streams,
    positions_of,
    relate,
    table_bytes,
    universes,
)
from protocol.sections import compress, decompress
from protocol.sparse import Indices, Mask, SparseVector, count_below
from protocol.values import Coded, SideFormat, ValueFormat, decode_values, encode_values

__all__ = ["SideFormat", "ValueFormat", "as_received", "decode", "describe", "encode", "max_body_bytes"]


def max_body_bytes(size: int) -> int:
    """Return more bytes than any body of a model with `size` values has: all values and a bitmap."""
    return 4 * size + size // 8 + 4096


def encode(
    vector: SparseVector,
    num_prunable: int,
    value_format: ValueFormat,
    known: Collection[str] = (),
    *,
    base: Mask | None = None,
    ends: Sequence[int] = (),
    side: SideFormat = "f32",
) -> bytes:
    """Return the vector as a body.

    Args:
        vector: with its tail, which is never pruned, complete.
        num_prunable: length of the prefix that masks apply to.
        value_format: of the prefix; see values.py.
        known: digests of masks that the receiver holds.
        base: a mask that it holds, to code the positions by.
        ends: where the parts of the prefix end, the last at `num_prunable`; one part by default.
        side: format of the tail.

    Raises:
        ValueError: our caller's fault, not the peer's: the tail is incomplete, a value is not finite or
            too large for its format, or the parts are not those of the prefix.
    """
    size = vector.mask.size
    if value_format not in get_args(ValueFormat) or side not in get_args(SideFormat):
        raise ValueError(f"unknown value format {value_format!r} or side format {side!r}")
    if not 0 <= num_prunable <= size:
        raise ValueError(f"{num_prunable} prunable positions of {size}")
    nnz = vector.mask.num_below(num_prunable)
    if vector.mask.nnz - nnz != size - num_prunable:
        stored, needed = vector.mask.nnz - nnz, size - num_prunable
        raise ValueError(f"the tail is never pruned, but only {stored} of its {needed} positions are stored")
    cuts = _ends(ends, num_prunable)
    relation, digest, streams = relate(vector.mask, nnz, cuts, known, base)
    coded_values = encode_values(vector.values[:nnz], _counts(vector.mask.indices[:nnz], cuts), value_format)
    parts, indices = encode_streams(streams)
    raw = [
        parts + coded_values.largest.astype("<f4").tobytes(),
        indices,
        coded_values.data,
        encode_values(vector.values[nnz:], [size - num_prunable], side).data,
    ]
    coded = [compress(section) for section in raw]
    header = Header(
        size=size,
        num_prunable=num_prunable,
        nnz=nnz,
        values=value_format,
        side=side,
        relation=relation,
        sections=tuple((len(a), len(b)) for a, b in zip(raw, coded, strict=True)),  # type: ignore[arg-type]
        mask=digest,
    )
    return b"".join([header_of.write(header), *coded])


def decode(
    data: bytes | memoryview,
    size: int,
    num_prunable: int,
    masks: Mapping[str, Mask],
    max_bytes: int | None = None,
    ends: Sequence[int] = (),
) -> SparseVector:
    """Return the vector in a body of a model with `size` values, of which the first are prunable.

    `masks` are those this side holds, by digest, tail included; `ends` as in `encode`. `max_bytes`
    defaults to the largest body that such a model can have.

    Raises:
        LimitExceeded: more bytes than `max_bytes`, or a header that is too long.
        UnknownMask: coded relative to a mask that is not in `masks`.
        MalformedMessage: anything else that `encode` would not have written.
    """
    limit = max_body_bytes(size) if max_bytes is None else max_bytes
    if len(data) > limit:
        raise LimitExceeded(f"a body of {len(data)} bytes; at most {limit} are read")
    if codec_v1.is_version_1(data):
        return codec_v1.decode(data, size, num_prunable, masks, limit)
    header, start = header_of.read(data)
    if (header.size, header.num_prunable) != (size, num_prunable):
        theirs = f"{header.size} values of which {header.num_prunable} are prunable"
        raise MalformedMessage(f"a body of another model: {theirs}; here {size} and {num_prunable}")
    cuts = _ends(ends, num_prunable)
    base = header_of.base_of(header, masks)
    sizes_of = universes(header.relation, base, cuts)
    header_of.check_lengths(header, sizes_of, cuts, len(data) - start)

    sections = _sections(header, memoryview(data)[start:])
    parts, indices = next(sections), next(sections)
    table = table_bytes(sizes_of)
    if header.relation == "known" and base is not None:
        mask = base
    else:
        mask = _mask(
            header,
            positions_of(header.relation, base, decode_streams(parts[:table], indices, sizes_of), cuts),
        )
    counts = _counts(mask.indices[: header.nnz], cuts)
    largest = np.frombuffer(parts[table:], "<f4").astype(np.float32)
    prunable = decode_values(next(sections), counts, header.values, largest)
    rest = decode_values(next(sections), [size - num_prunable], header.side, np.empty(0, np.float32))
    return SparseVector(mask, np.concatenate([prunable, rest]))


def as_received(
    vector: SparseVector,
    num_prunable: int,
    value_format: ValueFormat,
    *,
    ends: Sequence[int] = (),
    side: SideFormat = "f32",
) -> SparseVector:
    """Return what the receiver will read when this is sent: error feedback and control variates follow from it.

    Encoding the result gives the same values again, to the bit.

    Raises:
        ValueError: as `encode`.
    """
    cuts = _ends(ends, num_prunable)
    nnz = vector.mask.num_below(num_prunable)

    def back(values: Vector, counts: Sequence[int], value_format: ValueFormat) -> Vector:
        coded: Coded = encode_values(values, counts, value_format)
        return decode_values(coded.data, counts, value_format, coded.largest)

    prunable = back(vector.values[:nnz], _counts(vector.mask.indices[:nnz], cuts), value_format)
    rest = back(vector.values[nnz:], [vector.mask.nnz - nnz], side)
    return SparseVector(vector.mask, np.concatenate([prunable, rest]))


def describe(data: bytes | memoryview) -> dict[str, Any]:
    """Return the facts of a body's header, for reports; the sections are not looked at.

    `bound_bytes` is log2 C(num_prunable, nnz) bits, what the positions need where nothing is known, and
    the stored values at their format's width.

    Raises:
        LimitExceeded, MalformedMessage: the header cannot be read.
    """
    if codec_v1.is_version_1(data):
        return codec_v1.describe(data)
    header, start = header_of.read(data)
    parts, indices, values, side = (coded for _, coded in header.sections)
    return {
        "size": header.size,
        "num_prunable": header.num_prunable,
        "nnz": header.nnz,
        "values": header.values,
        "coding": header.relation,
        "mask": header.mask.hex() if header.mask else None,
        "header_bytes": start,
        "indices_bytes": parts + indices,
        "values_bytes": values,
        "tail_bytes": side,
        "total_bytes": len(data),
        **header_of.bounds(header.num_prunable, header.nnz, header.values),
    }


# Parts


def _sections(header: Header, coded: memoryview) -> Iterator[memoryview]:
    """Each section when it is its turn: a dense model's are as large as the model."""
    start = 0
    for raw_length, coded_length in header.sections:
        yield memoryview(decompress(coded[start : start + coded_length], raw_length))
        start += coded_length


def _ends(ends: Sequence[int], num_prunable: int) -> npt.NDArray[np.int64]:
    found = np.asarray(ends if len(ends) else [num_prunable], np.int64)
    if int(found[-1]) != num_prunable or bool((np.diff(found, prepend=0) < 0).any()):
        raise ValueError(f"the parts end at {found.tolist()}, the prunable prefix at {num_prunable}")
    return found


def _counts(indices: Indices, ends: npt.NDArray[np.int64]) -> list[int]:
    return [int(n) for n in np.diff(count_below(indices, ends), prepend=0)]


def _mask(header: Header, prunable: npt.NDArray[np.integer[Any]]) -> Mask:
    """The whole mask: the prunable positions, and the complete tail."""
    if prunable.size != header.nnz:
        raise MalformedMessage(f"{prunable.size} positions are coded, the header says {header.nnz}")
    side = np.arange(header.num_prunable, header.size, dtype=np.int32)
    return Mask(np.concatenate([prunable.astype(np.int32, copy=False), side]), header.size)
