"""Which positions a body stores, said by what the receiver holds; see codec.py for the four relations.

A relation is zero, one or two streams of positions, each in a universe that both sides know: all
positions, the support of a mask, or what that mask does not store. Universes are cut into the same parts
as the model, and each part is coded on its own (indices.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedMessage
from protocol.indices import bound_bits, decode_part, encode_part, most_bytes
from protocol.sparse import Indices, Mask, count_below

Relation = Literal["none", "known", "subset", "change"]
Longs = npt.NDArray[np.int64]

_PART = np.dtype([("coding", "u1"), ("parameter", "u1"), ("count", "<u4"), ("bytes", "<u4")])


@dataclass(frozen=True, eq=False)
class Stream:
    """Increasing positions of a universe that both sides know, and where its parts end."""

    positions: npt.NDArray[Any]
    ends: Longs

    def parts(self) -> Iterator[tuple[int, Indices]]:
        """Size of the universe in each part, and the positions within it; one at a time, since all are a copy."""
        begin = first = 0
        for end, behind in zip(
            self.ends.tolist(), count_below(self.positions, self.ends).tolist(), strict=True
        ):
            yield end - begin, (self.positions[first:behind] - begin).astype(np.int32, copy=False)
            begin, first = end, behind

    @property
    def bound_bits(self) -> float:
        """What the positions need, part by part."""
        sizes = np.diff(self.ends, prepend=0).tolist()
        counts = np.diff(count_below(self.positions, self.ends), prepend=0).tolist()
        return sum(bound_bits(size, count) for size, count in zip(sizes, counts, strict=True))


def relate(
    mask: Mask, nnz: int, ends: Longs, known: Collection[str], base: Mask | None
) -> tuple[Relation, bytes | None, list[Stream]]:
    """The cheapest way to say which prunable positions are stored, by what they need at least."""
    if nnz and known and mask.digest in known:
        return "known", bytes.fromhex(mask.digest), []
    num_prunable = int(ends[-1])
    indices = mask.indices[:nnz]
    plain = Stream(indices, ends)
    if base is None or base.size != mask.size:
        return "none", None, [plain]
    support = base.below(num_prunable).indices
    gone = np.flatnonzero(~_contains(indices, support))
    new = indices[~_contains(support, indices)]
    support_ends = count_below(support, ends)
    candidates: dict[Relation, list[Stream]] = {"none": [plain]}
    if new.size:
        removed = Stream(gone, support_ends)
        # A new position's number among those that the base does not store.
        added = Stream(new - np.searchsorted(support, new), ends - support_ends)
        candidates["change"] = [removed, added]
    else:
        candidates["subset"] = [Stream(np.searchsorted(support, indices), support_ends)]
    relation = min(candidates, key=lambda name: sum(s.bound_bits for s in candidates[name]))
    digest = None if relation == "none" else bytes.fromhex(base.digest)
    return relation, digest, candidates[relation]


def _contains(sorted_set: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    places = np.searchsorted(sorted_set, wanted)
    places[places == sorted_set.size] = 0
    if not sorted_set.size:
        return np.zeros(wanted.size, np.bool_)
    found: npt.NDArray[np.bool_] = sorted_set[places] == wanted
    return found


def universes(relation: Relation, base: Mask | None, ends: Longs) -> list[Longs]:
    """The sizes of each stream's parts."""
    sizes = np.diff(ends, prepend=0)
    if base is None:
        return [sizes]
    support = np.diff(count_below(base.indices, ends), prepend=0)
    return {"known": [], "subset": [support], "change": [support, sizes - support]}[relation]


def positions_of(relation: Relation, base: Mask | None, streams: list[Indices], ends: Longs) -> Indices:
    """The prunable positions that the decoded streams stand for."""
    if base is None:
        return streams[0]
    support = base.below(int(ends[-1])).indices
    if relation == "known":
        return support
    if relation == "subset":
        return support[streams[0]]
    kept = np.ones(support.size, np.bool_)
    kept[streams[0]] = False
    # The r-th free position lies behind every stored one that has at most r free ones before it.
    num_free_before = support - np.arange(support.size, dtype=np.int32)
    passed = np.searchsorted(num_free_before, streams[1], side="right")
    positions = np.concatenate([support[kept], streams[1] + passed.astype(np.int32)])
    positions.sort()
    return positions


def table_bytes(sizes_of: list[Longs]) -> int:
    """Length of the table of parts."""
    return _PART.itemsize * sum(sizes.size for sizes in sizes_of)


def most_index_bytes(sizes_of: list[Longs]) -> int:
    """More bytes than any positions in these universes take."""
    return sum(most_bytes(int(n)) for sizes in sizes_of for n in sizes)


def encode_streams(streams: list[Stream]) -> tuple[bytes, bytes]:
    """Return the table of parts, and their codes one behind the other."""
    rows, sections = [], []
    for stream in streams:
        for size, indices in stream.parts():
            coding, parameter, data = encode_part(indices, size)
            rows.append((coding, parameter, indices.size, len(data)))
            sections.append(data)
    return np.asarray(rows, _PART).tobytes(), b"".join(sections)


def decode_streams(table: memoryview, indices: memoryview, sizes_of: list[Longs]) -> list[Indices]:
    """Return the positions of each stream in its universe.

    Raises:
        MalformedMessage: bytes that `encode_streams` would not have written.
    """
    rows: Iterator[Any] = iter(np.frombuffer(table, _PART).tolist())
    streams, start = [], 0
    for universe in sizes_of:
        begins = np.cumsum(universe) - universe
        parts = [np.empty(0, np.int32)]
        for size, begin in zip(universe.tolist(), begins.tolist(), strict=True):
            coding, parameter, count, length = next(rows)
            if count > size or length > most_bytes(size) or start + length > len(indices):
                raise MalformedMessage(f"{count} of {size} positions in {length} bytes is impossible")
            part = decode_part(indices[start : start + length], size, count, coding, parameter)
            parts.append(part + np.int32(begin))
            start += length
        streams.append(np.concatenate(parts))
    if start != len(indices):
        raise MalformedMessage(f"{len(indices) - start} bytes of indices belong to no part")
    return streams
