"""What must survive a power cut: the session counter, a method's memory, and fetched artifacts.

A damaged memory is an error: silently starting anew would give the client a second, different
personal mask in the same run.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.artifact import MANIFEST, Manifest, parse
from protocol.durable import replace_file
from protocol.errors import DataError
from protocol.npz import read_arrays

MEMORIES = 4  # Of as many runs is kept what a method remembers.


class Spool:
    """The client's state folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is missing.

        Raises:
            DataError: it cannot be written.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the state folder {folder} cannot be made: {error}; set state = ...") from error

    def next_session(self) -> int:
        """Count this start of the client; what an earlier one has said is then known to be old.

        Kept twice: a start that is counted again is taken for a recording, or for a copy of the card.

        Raises:
            DataError: it cannot be written down.
        """
        paths = [self._folder / name for name in ("session", "session.copy")]
        session = max(map(_number_in, paths)) + 1
        try:
            for path in paths:
                replace_file(path, f"{session}\n".encode())
        except OSError as error:
            raise DataError(f"this start cannot be written down in {self._folder}: {error}") from error
        return session

    def memory(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return what a method kept under this name; empty at its first task.

        Raises:
            DataError: the file is damaged.
        """
        path = self._memory_path(name)
        if not path.is_file():
            return {}
        try:
            return read_arrays(path, max_bytes=path.stat().st_size)  # It is not compressed.
        except (DataError, OSError) as error:
            raise DataError(f"{error}; remove it to begin the run anew") from error

    def keep(self, name: str, memory: dict[str, npt.NDArray[Any]]) -> None:
        """Replace what is kept under this name."""
        if memory or self._memory_path(name).is_file():
            buffer = io.BytesIO()
            np.savez(buffer, **memory)  # type: ignore[arg-type]
            replace_file(self._memory_path(name), buffer.getvalue())
            others = sorted(self._folder.glob("memory-*.npz"), key=lambda path: path.stat().st_mtime_ns)
            for path in others[:-MEMORIES]:
                path.unlink()

    def artifact_folder(self, digest: str) -> Path:
        """Where the files of an artifact are kept."""
        return self._folder / "artifacts" / digest

    def manifest(self, digest: str) -> Manifest | None:
        """Return a manifest that was fetched before."""
        path = self.artifact_folder(digest) / MANIFEST
        return parse(path.read_bytes()) if path.is_file() else None

    def keep_file(self, digest: str, name: str, data: bytes) -> None:
        """Keep one file of an artifact."""
        folder = self.artifact_folder(digest)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, data)

    def _memory_path(self, name: str) -> Path:
        return self._folder / f"memory-{name}.npz"


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
