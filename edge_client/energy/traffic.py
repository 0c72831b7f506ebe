"""Bytes to and from disk of this process, and over the network of the whole machine, during a phase.

The network's are what the radio moves: headers, TLS, acknowledgements and other programs included, which is
why they differ from the bytes that the client counts itself. What cannot be read is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil  # type: ignore[import-untyped, unused-ignore]


@dataclass(frozen=True)
class Moved:
    """Bytes; None: unknown."""

    disk_read_bytes: int | None = None
    disk_written_bytes: int | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None


class Traffic:
    """Counts from one look to the next."""

    def __init__(self) -> None:
        """Count from now."""
        self._process = psutil.Process()
        self._before = self._look()

    def begin(self) -> None:
        """Count from now."""
        self._before = self._look()

    def moved(self) -> Moved:
        """Return what was moved since `begin`; a counter that was reset is unknown."""
        now = self._look()
        pairs = zip(self._before, now, strict=True)
        return Moved(*(None if a is None or b is None or b < a else b - a for a, b in pairs))

    def _look(self) -> tuple[int | None, ...]:
        disk: tuple[int | None, ...] = (None, None)
        net: tuple[int | None, ...] = (None, None)
        try:
            io = self._process.io_counters()  # Not on every system.
            disk = io.read_bytes, io.write_bytes
        except (psutil.Error, OSError, AttributeError, NotImplementedError):
            pass
        try:
            wire = psutil.net_io_counters()
            net = (wire.bytes_recv, wire.bytes_sent) if wire is not None else net
        except (psutil.Error, OSError, RuntimeError):
            pass
        return (*disk, *net)
