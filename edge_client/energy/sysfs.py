"""Numbers in the kernel's small files, read as often as a meter needs.

A file is opened once and read by position: half the cost of opening it each time. Unbuffered,
because Python's text files turn a sensor's EAGAIN into a TypeError.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# JetPack 4 writes "32760 ma", "250 ms", "8500 mw".
_NUMBER = re.compile(rb"\s*([+-]?\d+)(?:\s*[a-zA-Z]+)?\s*\Z")
_LONGEST = 4096


class KernelFile:
    """One file that is read again and again."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._descriptor = -1

    def bytes(self) -> bytes:
        """Return the content of now.

        Raises:
            OSError: gone, forbidden, or the driver has no value now. The next call opens it anew.
        """
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, _LONGEST, 0)
        except OSError:
            self.close()
            raise

    def integer(self) -> int:
        """Return the one number in it.

        Raises:
            OSError: as `bytes`.
            ValueError: it holds no whole number.
        """
        found = _NUMBER.match(content := self.bytes())
        if found is None:
            raise ValueError(f"{self.path} holds {content[:40]!r}, which is no whole number")
        return int(found[1])

    def close(self) -> None:
        """Let go of it until the next read."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        """Do not leak the descriptor."""
        self.close()


def integer(path: Path) -> int:
    """Return the one number in a file that is read once. Raises OSError or ValueError."""
    file = KernelFile(path)
    try:
        return file.integer()
    finally:
        file.close()


def text(path: Path) -> str:
    """Return a file's text without the NUL or newline at its end; "" if it cannot be read."""
    file = KernelFile(path)
    try:
        return file.bytes().decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""
    finally:
        file.close()


def optional_integer(path: Path) -> int | None:
    """Return the number in a file, None where there is none."""
    try:
        return integer(path)
    except (OSError, ValueError):
        return None


def folders(root: Path, pattern: str) -> list[Path]:
    """Return what matches below `root`, in numeric order: numbers move between boots, so none has a meaning."""

    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.as_posix())
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(root.glob(pattern), key=key)
