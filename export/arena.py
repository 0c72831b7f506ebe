"""ONNX Runtime's CPU arena, in what decides how much memory becomes resident.

The arena (onnxruntime/core/framework/bfc_arena.cc, the same in 1.19 and 1.31) takes regions from the
system, each twice the last, hands out the smallest free chunk that fits, splits a chunk only if it is
at least twice as long as asked, and joins free neighbours of one region. What is kept apart by that
adds up to a quarter to the bytes alive; which share depends on the graph, so export plays it through.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

GRAIN_BYTES = 256
FIRST_REGION_BYTES = 1 << 20
LARGEST_GROWTH_BYTES = 1 << 30
# A remainder as long as this is split off from a chunk that is less than twice as long as asked.
DEAD_BYTES_MAX = 128 << 20


@dataclass(eq=False)
class _Chunk:
    """A piece of a region; addresses are unique over all regions."""

    begin: int
    size: int
    region: int
    is_free: bool = True


class Arena:
    """Plays allocations through. `resident_bytes` counts what was ever written to."""

    def __init__(self) -> None:
        """No region yet."""
        self.resident_bytes = 0
        self._next_region_bytes = FIRST_REGION_BYTES
        self._chunks: list[_Chunk] = []  # By address.
        self._written: list[int] = []  # Of each region, how far from its beginning.
        self._origin: list[int] = []

    def allocate(self, num_bytes: int) -> _Chunk | None:
        """Return the chunk for an output that will be written in full; nothing for an empty one."""
        if num_bytes == 0:
            return None
        size = -(-num_bytes // GRAIN_BYTES) * GRAIN_BYTES
        fitting = [chunk for chunk in self._chunks if chunk.is_free and chunk.size >= size]
        chunk = min(fitting, key=lambda c: (c.size, c.begin)) if fitting else self._extend(size)
        if chunk.size >= 2 * size or chunk.size - size >= DEAD_BYTES_MAX:
            rest = _Chunk(chunk.begin + size, chunk.size - size, chunk.region)
            chunk.size = size
            self._chunks.insert(bisect.bisect(self._chunks, chunk.begin, key=lambda c: c.begin), rest)
        chunk.is_free = False
        # Best fit fills a region from its beginning, so what was written is a prefix.
        end = chunk.begin + num_bytes - self._origin[chunk.region]
        grown = max(0, end - self._written[chunk.region])
        self._written[chunk.region] += grown
        self.resident_bytes += grown
        return chunk

    def free(self, chunk: _Chunk | None) -> None:
        """Give a chunk back; it is joined with its free neighbours."""
        if chunk is None:
            return
        chunk.is_free = True
        at = bisect.bisect_left(self._chunks, chunk.begin, key=lambda c: c.begin)
        for left in (at, at - 1):
            if left >= 0 and left + 1 < len(self._chunks):
                a, b = self._chunks[left], self._chunks[left + 1]
                if a.is_free and b.is_free and a.region == b.region:
                    a.size += b.size
                    del self._chunks[left + 1]

    def _extend(self, size: int) -> _Chunk:
        has_grown = False
        while size > self._next_region_bytes:
            self._next_region_bytes *= 2
            has_grown = True
        region_bytes = self._next_region_bytes
        if not has_grown:
            self._next_region_bytes = min(2 * self._next_region_bytes, LARGEST_GROWTH_BYTES)
        # The system maps downwards, and of two chunks of one size the arena takes the one at the lower address.
        below = self._chunks[0].begin if self._chunks else 0
        chunk = _Chunk(below - region_bytes, region_bytes, len(self._written))
        self._chunks.insert(0, chunk)
        self._written.append(0)
        self._origin.append(chunk.begin)
        return chunk
