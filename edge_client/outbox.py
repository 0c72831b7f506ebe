"""The last update, on disk: a client that is killed while it uploads does not train again.

The file holds the task, the update and its body, and what the method remembers after it. It is written
before the method's memory is replaced, so memory is never ahead of the last update that can be
delivered; whoever finds the file puts that memory in place first.

A damaged file is as none: the task is done again, from the memory before it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_client.spool import Spool
from protocol.durable import replace_file
from protocol.errors import ProtocolError
from protocol.messages import Task, Update, decode, encode

log = logging.getLogger(__name__)

SCHEMA = 1
OUTBOX = "outbox.bin"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Parcel(msgspec.Struct, frozen=True):
    """An update that is ready, and all that is needed to deliver it."""

    task: Task
    update: Update
    body: bytes
    # The body where it names no mask that the coordinator may have forgotten; empty: `body` names none.
    plain: bytes
    mask: str  # Digest of the uploaded vector's mask.


class _Stored(msgspec.Struct):
    schema: int
    task: bytes
    update: bytes
    body: bytes
    plain: bytes
    mask: str
    memory_name: str
    memory: dict[str, tuple[str, tuple[int, ...], bytes]]


class Outbox:
    """One file in the client's state folder."""

    def __init__(self, folder: Path, spool: Spool) -> None:
        """Nothing is read yet."""
        self._path, self._spool = folder / OUTBOX, spool

    def keep(self, parcel: Parcel, memory_name: str, memory: dict[str, npt.NDArray[Any]]) -> None:
        """Keep a parcel, then the method's memory.

        Raises:
            OSError: the disk is full or read-only. Nothing was changed if the parcel did not fit.
        """
        stored = _Stored(
            SCHEMA,
            encode(parcel.task),
            encode(parcel.update),
            parcel.body,
            parcel.plain,
            parcel.mask,
            memory_name,
            {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in memory.items()},
        )
        data = msgspec.msgpack.encode(stored)
        replace_file(self._path, hashlib.sha256(data).digest() + data)
        self._spool.keep(memory_name, memory)

    def last(self) -> Parcel | None:
        """Return what was kept last, with the method's memory as it was then put in place.

        Raises:
            OSError: the memory cannot be written.
        """
        try:
            data = self._path.read_bytes()
            digest, data = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("it was cut short or spoiled")
            stored = msgspec.msgpack.decode(data, type=_Stored)
            if stored.schema != SCHEMA:
                raise ValueError(f"schema {stored.schema}; this version reads {SCHEMA}")
            task, update = decode(stored.task), decode(stored.update)
            memory = {
                name: np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
                for name, (dtype, shape, raw) in stored.memory.items()
            }
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError, ProtocolError) as error:
            log.warning("the last update is done again path=%s reason=%s", self._path, error)
            return None
        assert isinstance(task, Task)
        assert isinstance(update, Update)
        self._spool.keep(stored.memory_name, memory)
        return Parcel(task, update, stored.body, stored.plain, stored.mask)
