"""The samples behind the figures, kept for later: a compressed CSV that grows while phases last.

t_s,phase,value          seconds since boot; watts of a power sensor, joules of a counter
t_s,phase,value,gaps     of a counter: where `gaps` rises, joules are missing

zstdcat state/samples-1758622510.csv.zst | head
sparsefleet energy report --samples state/samples-1758622510.csv.zst --out power.html
"""

from __future__ import annotations

import contextlib
import logging
from io import BufferedWriter
from pathlib import Path

import zstandard

from edge_client.energy.source import About, Reading

LEVEL = 3
DIGITS = 9  # A counter's joules differ in the last ones.
PATTERN = "samples-*.csv.zst"
FLUSH_EVERY = 600  # Samples: a minute at 10 Hz is what a power cut may take.

_log = logging.getLogger(__name__)


def room_in(folder: Path, max_bytes: int) -> int:
    """Return what a new file of `folder` may take, so that all together take at most `max_bytes`.

    It is at least half: the oldest files are removed for it. Raises OSError: one cannot be removed.
    """
    kept = sorted(folder.glob(PATTERN), key=lambda path: path.name)
    sizes = [path.stat().st_size for path in kept]
    while sum(sizes) > max_bytes // 2:
        kept.pop(0).unlink()
        sizes.pop(0)
    return max_bytes - sum(sizes)


class Recording:
    """Appends samples to a file of at most so many bytes."""

    def __init__(self, path: Path, about: About, max_bytes: int) -> None:
        """Begin a new file. Raises OSError: it cannot be made."""
        self._path, self._left = path, max_bytes
        self._count = 0
        self._file: BufferedWriter | None = path.open("xb")
        self._writer = zstandard.ZstdCompressor(LEVEL).stream_writer(self._file)
        self._writer.write(
            f"# {about.name} {about.quantity} {about.unit} {about.scope}\n"
            f"t_s,phase,value{',gaps' if about.quantity == 'energy' else ''}\n".encode()
        )
        self._has_gaps = about.quantity == "energy"

    def keep(self, phase: str, at_s: float, reading: Reading) -> None:
        """See meter.Keeper. A disk that fails ends the recording, not the training."""
        if self._file is None:
            return
        try:
            gaps = f",{reading.gaps}" if self._has_gaps else ""
            self._writer.write(f"{at_s:.4f},{phase},{reading.value:.{DIGITS}g}{gaps}\n".encode())
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
