"""The samples behind the figures, kept for later: a compressed CSV that grows while phases last.

t_s,phase,value          seconds since boot; watts of a power sensor, joules of a counter

zstdcat state/samples-1758622510.csv.zst | head
"""

from __future__ import annotations

import contextlib
import logging
from io import BufferedWriter
from pathlib import Path

import zstandard

from edge_client.energy.source import About, Reading

LEVEL = 3
FLUSH_EVERY = 600  # Samples: a minute at 10 Hz is what a power cut may take.

_log = logging.getLogger(__name__)


class Recording:
    """Appends samples to a file of at most so many bytes."""

    def __init__(self, path: Path, about: About, max_bytes: int) -> None:
        """Begin a new file. Raises OSError: it cannot be made."""
        self._path, self._left = path, max_bytes
        self._count = 0
        self._file: BufferedWriter | None = path.open("xb")
        self._writer = zstandard.ZstdCompressor(LEVEL).stream_writer(self._file)
        self._writer.write(
            f"# {about.name} {about.quantity} {about.unit} {about.scope}\nt_s,phase,value\n".encode()
        )

    def keep(self, phase: str, at_s: float, reading: Reading) -> None:
        """See meter.Keeper. A disk that fails ends the recording, not the training."""
        if self._file is None:
            return
        try:
            self._writer.write(f"{at_s:.4f},{phase},{reading.value:.6g}\n".encode())
            self._count += 1
            if self._count % FLUSH_EVERY == 0:
                self._writer.flush(zstandard.FLUSH_BLOCK)
                self._file.flush()
                if self._file.tell() >= self._left:
                    self.close()
        except OSError as error:
            _log.warning("samples are no longer kept path=%s reason=%s", self._path, error)
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Finish the file."""
        file, self._file = self._file, None
        if file is not None:
            with file, contextlib.suppress(OSError):  # What was flushed can be read all the same.
                self._writer.flush(zstandard.FLUSH_FRAME)
