"""The sender's side of bodies (blobs.py): where they are kept, and which chunks to publish when."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from protocol.blobs import CHUNK_BYTES, Buffer, num_chunks, pack_chunk, ref_of
from protocol.errors import LimitExceeded
from protocol.messages import BlobRef

RESEND_S = 1.0  # A chunk is published at most once within this time, whoever asks.

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class BlobStore:
    """The sender's bodies, and what a receiver keeps: in memory, or as files named by their digest.

    Bounded: when `max_bytes` would be exceeded, what was used longest ago goes first. Pinned bodies
    stay. Files are written beside their place and renamed, and read with their digest checked, so
    that a file which a power cut or a tired SD card spoiled is as if it had never been there. Nothing
    is synced to disk: a lost file is fetched again.

    Not thread-safe.
    """

    def __init__(self, max_bytes: int, directory: Path | None = None, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Take over what is in the directory, oldest first by modification time; create it if absent."""
        self.max_bytes, self.chunk_bytes = max_bytes, chunk_bytes
        self._directory = directory
        self._sizes: dict[str, int] = {}  # In the order of use.
        self._bodies: dict[str, bytes] = {}  # Without a directory: all. With one: the last that was read.
        self._pinned: set[str] = set()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.glob("*.tmp"):
                path.unlink()
            files = [(path.stat(), path.name) for path in directory.iterdir() if _DIGEST.match(path.name)]
            for stat, name in sorted(files, key=lambda file: (file[0].st_mtime_ns, file[1])):
                self._sizes[name] = stat.st_size

    @property
    def num_bytes(self) -> int:
        """Size of all bodies together."""
        return sum(self._sizes.values())

    def __contains__(self, digest: str) -> bool:
        """Whether the body is here, as far as is known without reading it."""
        return digest in self._sizes

    def put(self, data: Buffer) -> BlobRef:
        """Keep a body and return its name. A body that is here already is only marked as used.

        Raises:
            LimitExceeded: it does not fit beside the pinned ones.
        """
        ref = ref_of(data, self.chunk_bytes)
        if self.get(ref.digest) is not None:
            return ref
        self._make_room(ref.size)
        if self._directory is None:
            self._bodies[ref.digest] = bytes(data)
        else:
            path = self._directory / ref.digest
            partial = path.with_suffix(".tmp")
            partial.write_bytes(data)
            partial.replace(path)
        self._sizes[ref.digest] = ref.size
        return ref

    def get(self, digest: str) -> bytes | None:
        """Return a body, or None if it is not here or no longer what it was."""
        if digest not in self._sizes:
            return None
        body = self._bodies.get(digest)
        if body is None:
            body = self._read(digest)
            if body is None:
                self.remove(digest)
                return None
            # Chunks of one body are asked for in a row: read and check it once, not for each.
            self._bodies = {digest: body}
        self._sizes[digest] = self._sizes.pop(digest)
        return body

    def chunk(self, digest: str, index: int) -> bytes | None:
        """Return a chunk as it travels, or None if the body or the index does not exist here."""
        body = self.get(digest)
        if body is None or not 0 <= index < num_chunks(len(body), self.chunk_bytes):
            return None
        begin = index * self.chunk_bytes
        return pack_chunk(index, memoryview(body)[begin : begin + self.chunk_bytes])

    def pin(self, digest: str) -> None:
        """Keep it whatever comes; it need not be here yet."""
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """Let it go when room is needed."""
        self._pinned.discard(digest)

    def remove(self, digest: str) -> None:
        """Forget a body, pinned or not."""
        self._sizes.pop(digest, None)
        self._bodies.pop(digest, None)
        if self._directory is not None:
            (self._directory / digest).unlink(missing_ok=True)

    def _read(self, digest: str) -> bytes | None:
        assert self._directory is not None
        path = self._directory / digest
        try:
            body = path.read_bytes()
            os.utime(path)  # The order of use must survive a restart.
        except OSError:
            return None
        return body if hashlib.sha256(body).hexdigest() == digest else None

    def _make_room(self, size: int) -> None:
        pinned = sum(self._sizes[digest] for digest in self._pinned if digest in self._sizes)
        if pinned + size > self.max_bytes:
            raise LimitExceeded(
                f"a blob of {size} bytes does not fit: {pinned} of {self.max_bytes} bytes are in use"
            )
        for digest in [one for one in self._sizes if one not in self._pinned]:
            if self.num_bytes + size <= self.max_bytes:
                return
            self.remove(digest)


class Publisher:
    """Merges the wants of a cohort: a chunk that was published just now serves all who asked for it."""

    def __init__(self, store: BlobStore, resend_s: float = RESEND_S) -> None:
        """Publish from this store, each chunk at most once within `resend_s`."""
        self._store, self._resend_s = store, resend_s
        self._published_s: dict[tuple[str, int], float] = {}  # In the order of time.

    def due(self, digest: str, chunks: Iterable[int], now_s: float) -> list[int]:
        """Return which of the wanted chunks to publish now; they count as published.

        Left out: what was published less than resend_s ago, and what does not exist. A receiver that
        missed a chunk asks once more, later.
        """
        for key, published_s in list(self._published_s.items()):
            if now_s - published_s < self._resend_s:
                break  # So that memory is bounded by what can be published in that time.
            del self._published_s[key]
        body = self._store.get(digest)
        end = num_chunks(len(body), self._store.chunk_bytes) if body is not None else 0
        due = [
            chunk
            for chunk in dict.fromkeys(chunks)
            if 0 <= chunk < end and (digest, chunk) not in self._published_s
        ]
        self._published_s.update(((digest, chunk), now_s) for chunk in due)
        return due
