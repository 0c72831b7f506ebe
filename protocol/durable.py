"""Files that survive a power cut: whoever reads finds the old content or the new, never half of either."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write beside the file, sync, rename, and sync the folder, so that the rename itself lasts.

    `mode` is what a new file may be read by, less the umask; 0o600 for secrets.

    Raises:
        OSError: the disk is full or read-only; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # A left-over may have another mode.
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
