"""Large bodies in chunks, named by the SHA-256 of their bytes: the format, and the receiver. No I/O and no clock.

    receiver                                          sender (blob_store.py)
      Assembly(ref).wanted(now)  -- Want(chunks) -->    Publisher.due(digest, chunks, now)
      Assembly.add(payload)      <-- chunk ---------    BlobStore.chunk(digest, index)
      ... until is_complete, then bytes()

The receiver sets the pace and says what is missing, so that a lost chunk, a restarted broker or a
duplicate needs no case of its own: what has not arrived is asked for again. Chunks for a cohort are
published once, on a topic that all of it hears.

A chunk on the wire is its index and the CRC-32 of its data (uint32 each, little-endian), then the
data. The CRC finds a damaged chunk at once; what is proof against malice is the SHA-256 of the whole.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np

from protocol.errors import DigestMismatch, LimitExceeded
from protocol.messages import BlobRef

# Large enough that a message's cost does not count. What a reference means that does not say it.
CHUNK_BYTES = 128 * 1024
# A broker hears nothing of a client while one of its packets is under way, and gives it up after 1.5
# keep-alives of 15 s: at 32 kbit/s such a chunk takes 16 s, at 64 kbit/s with lost segments 11 s.
UPLOAD_CHUNK_BYTES = 64 * 1024
_chunk_header = struct.Struct("<II")
MAX_CHUNK_PAYLOAD_BYTES = CHUNK_BYTES + _chunk_header.size

WINDOW = 16  # Chunks asked for and not yet here, at most: 2 MiB.
FIRST_WINDOW = 4  # Before the link's rate is known.
WINDOW_S = 4.0  # What is outstanding should arrive within this time.
STALL_S = 2.0  # Without a new chunk for so long, something was lost.
STALL_S_MAX = 30.0

Buffer = bytes | bytearray | memoryview


def ref_of(data: Buffer, chunk_bytes: int = CHUNK_BYTES) -> BlobRef:
    """Return the name and size of a body, and of its chunks."""
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data), chunk_bytes)


def num_chunks(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return how many chunks a body of `size` bytes has; none if it is empty."""
    return -(-size // chunk_bytes)


def pack_chunk(index: int, data: Buffer) -> bytes:
    """Return one chunk as it travels."""
    return _chunk_header.pack(index, zlib.crc32(data)) + data


class Assembly:
    """The receiver's side of one body.

             a Want                      a chunk
        idle ------> waiting for chunks ---------> ... ---> complete
                       |        ^
                       +--------+  nothing new for too long: ask again for one, wait twice as long

    Which chunks were lost is told by order: a sender answers Wants in turn and MQTT keeps the order,
    so when a chunk of a later Want arrives, what is outstanding of earlier ones will not come. Only
    when nothing arrives at all does time decide, and then a single chunk is asked for: over a slow
    link the others are still on their way, and to ask for all would double what it has to carry.

    Not thread-safe. Memory: the body's size, used as chunks arrive.

    Raises:
        LimitExceeded: the announced size is above `max_bytes`; nothing was allocated.
    """

    def __init__(self, ref: BlobRef, max_bytes: int) -> None:
        """Begin with no chunk."""
        if ref.size > max_bytes:
            raise LimitExceeded(f"a blob of {ref.size} bytes is announced; at most {max_bytes} are accepted")
        self.ref = ref
        self.num_rejected = 0  # Chunks that were damaged or not of this blob.
        self.num_duplicates = 0
        self._body = memoryview(b"")  # Made for the first chunk: of a large cohort most wait their turn.
        self._begin()

    def _begin(self) -> None:
        self._missing = dict.fromkeys(
            range(num_chunks(self.ref.size, self.ref.chunk_bytes))
        )  # A set that keeps its order.
        self._asked: dict[int, int] = {}  # Outstanding chunk -> number of the Want that asked for it.
        self._num_wants = 0
        self._num_new = 0  # Chunks since the last call of `wanted`.
        self._progress_s: float | None = None  # When the last new chunk came, or the first Want went.
        self._silence_s = 0.0  # When the last Want went into silence, or progress was made.
        self._stall_s = STALL_S
        self._interval_s: float | None = None  # Between chunks, smoothed.

    @property
    def missing(self) -> list[int]:
        """Chunks that are not here yet, ascending."""
        return list(self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are here; `bytes` may still find that they are the wrong ones."""
        return not self._missing

    def add(self, payload: Buffer) -> bool:
        """Take in a chunk. Return whether it is one of this blob; a duplicate is, and changes nothing."""
        index, data = self._checked(payload)
        if data is None:
            self.num_rejected += 1
            return False
        if index not in self._missing:
            self.num_duplicates += 1
            return True
        if len(self._body) != self.ref.size:
            # Uninitialised: of a large one the system commits pages only as chunks are written.
            self._body = np.empty(self.ref.size, np.uint8).data
        start = index * self.ref.chunk_bytes
        self._body[start : start + len(data)] = data
        del self._missing[index]
        self._num_new += 1
        want = self._asked.pop(index, 0)
        for lost in [chunk for chunk, asked_by in self._asked.items() if asked_by < want]:
            del self._asked[lost]
        return True

    def _checked(self, payload: Buffer) -> tuple[int, memoryview | None]:
        """Return index and data; no data if the chunk is not a sound one of this blob."""
        if len(payload) < _chunk_header.size:
            return 0, None
        index, crc = _chunk_header.unpack_from(payload)
        data = memoryview(payload)[_chunk_header.size :]
        expected = min(self.ref.chunk_bytes, self.ref.size - index * self.ref.chunk_bytes)
        is_sound = 0 < expected == len(data) and zlib.crc32(data) == crc
        return index, data if is_sound else None

    def wanted(self, now_s: float) -> list[int] | None:
        """Return which chunks to ask for now, or None: nothing to ask. Call it often, say every 0.2 s.

        `now_s` is any clock that does not go backwards.
        """
        if self.is_complete:
            return None
        if self._num_new and self._progress_s is not None:
            self._measure(min((now_s - self._progress_s) / self._num_new, STALL_S_MAX))
            self._progress_s = self._silence_s = now_s
            self._num_new = 0
        window = self._window()
        # Ask in halves of a window, not for each chunk that arrives.
        if len(self._asked) <= window // 2:
            chunks = [chunk for chunk in self._missing if chunk not in self._asked]
            chunks = chunks[: window - len(self._asked)]
            if chunks:
                return self._ask(chunks, now_s)
        if now_s - self._silence_s >= self._stall_s:
            self._silence_s = now_s
            self._stall_s = max(self._stall_s, min(2 * self._stall_s, STALL_S_MAX))
            # The newest: if the older ones are only slow they arrive before it, else it tells on them.
            return self._ask([next(reversed(self._asked))], now_s)
        return None

    def _measure(self, interval_s: float) -> None:
        known_s = interval_s if self._interval_s is None else self._interval_s
        self._interval_s = 0.7 * known_s + 0.3 * interval_s
        self._stall_s = max(STALL_S, 3 * self._interval_s)

    def _window(self) -> int:
        if self._interval_s is None:
            return FIRST_WINDOW
        if self._interval_s * WINDOW <= WINDOW_S:
            return WINDOW
        return max(2, int(WINDOW_S / self._interval_s))

    def _ask(self, chunks: list[int], now_s: float) -> list[int]:
        self._num_wants += 1
        for chunk in chunks:
            self._asked.pop(chunk, None)
            self._asked[chunk] = self._num_wants
        if self._progress_s is None:
            self._progress_s = self._silence_s = now_s
        return chunks

    def ask_again(self) -> None:
        """Forget what was asked for: the connection is a new one, and what was on its way is lost."""
        self._asked.clear()
        self._progress_s = None  # The time without a connection says nothing about the link.
        self._stall_s = STALL_S

    def bytes(self) -> memoryview:
        """Return the body; a view, valid as long as the assembly.

        Raises:
            DigestMismatch: it is not the announced one. All chunks are forgotten: none is known to
                be right, and the next `wanted` begins again.
            ValueError: chunks are missing.
        """
        if not self.is_complete:
            raise ValueError(f"{len(self._missing)} chunks are missing")
        digest = hashlib.sha256(self._body).hexdigest()
        if digest != self.ref.digest:
            self._begin()
            raise DigestMismatch(f"a blob announced as {self.ref.digest} turned out to be {digest}")
        return self._body.toreadonly()
