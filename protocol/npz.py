"""Arrays in an .npz file.

Nothing in it is executed (no pickle), and nothing is read before its declared size has been compared with a limit.
"""

from __future__ import annotations

import math
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError

Array = npt.NDArray[Any]

# NumPy reads an array's header by ast.literal_eval, and CPython 3.11 counts the depth of what it parses for all threads
# together: two at once now and then end in "SystemError: AST constructor recursion depth mismatch". So only one reads;
# but another may parse for a traceback that it logs, and then reading is tried again.
_one_at_a_time = threading.Lock()
ATTEMPTS = 20


def read_arrays(path: Path, max_bytes: int, only: Sequence[str] | None = None) -> dict[str, Array]:
    """Return the arrays of an .npz file, or those named in `only` that it has.

    Raises:
        DataError: not an .npz file, larger than `max_bytes` in total, or an array that is damaged,
            holds Python objects, or declares another size than it has.
    """
    try:
        with _one_at_a_time, zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if only is not None:
                members = {name: info for name, info in members.items() if name in only}
            total = sum(info.file_size for info in members.values())
            if total > max_bytes:
                raise DataError(f"{path} holds {total} bytes; at most {max_bytes} are read")
            return {name: _read(archive, info, path) for name, info in members.items()}
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not an .npz file, or is damaged: {error}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    for _ in range(ATTEMPTS - 1):
        try:
            return _array(archive, info, path)
        except SystemError:
            continue
    return _array(archive, info, path)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    """Read one array whose header agrees with its length: NumPy would first allocate what a header says."""
    with archive.open(info) as file:
        shape, dtype = _header(file)
        declared = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or declared != info.file_size - file.tell():
            what = (
                "Python objects" if dtype.hasobject else f"{declared} bytes by its header, not what is there"
            )
            raise DataError(f"{path}: array {info.filename} holds {what}; it is not read")
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"array format {version} is not known")
    return shape, dtype
