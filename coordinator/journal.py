"""What a run must not lose: one checkpoint file, replaced as a whole after each round.

A resumed run continues with the round after the last closed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from protocol.durable import replace_file
from protocol.errors import ConfigError
from protocol.method import Global
from protocol.sparse import Mask

SCHEMA = 2
CHECKPOINT = "checkpoint.bin"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state between two rounds."""

    run: str
    artifact: str  # Digest of the manifest: a checkpoint of another model is refused.
    next_round: int
    current: Global
    duration_s: float  # Of the run so far.
    averaged: Mapping[str, int] = field(default_factory=dict)  # Client -> the last round that averaged it.


class _Array(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Stored(msgspec.Struct):
    schema: int
    run: str
    artifact: str
    next_round: int
    size: int
    indices: bytes
    weights: bytes
    state: dict[str, _Array]
    duration_s: float
    averaged: dict[str, int]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint."""
    current = checkpoint.current
    stored = _Stored(
        SCHEMA,
        checkpoint.run,
        checkpoint.artifact,
        checkpoint.next_round,
        current.mask.size,
        current.mask.indices.astype("<i4").tobytes(),
        current.weights.astype("<f4").tobytes(),
        {name: _stored(array) for name, array in current.state.items()},
        checkpoint.duration_s,
        dict(checkpoint.averaged),
    )
    data = zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(stored))
    replace_file(folder / CHECKPOINT, data)


def restore(folder: Path, artifact: str) -> Checkpoint:
    """Return the last checkpoint of a run.

    Raises:
        ConfigError: there is none, it is of another model, or it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {CHECKPOINT}: no round was finished there, so nothing can be resumed"
        )
    try:
        stored = msgspec.msgpack.decode(zstandard.decompress(path.read_bytes()), type=_Stored)
    except (msgspec.DecodeError, zstandard.ZstdError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if stored.schema != SCHEMA:
        raise ConfigError(f"{path} has schema {stored.schema}; this version reads {SCHEMA}")
    if stored.artifact != artifact:
        raise ConfigError(f"{path} belongs to another artifact; give the one that the run was started with")
    mask = Mask(np.frombuffer(stored.indices, "<i4"), stored.size)
    weights = np.frombuffer(stored.weights, "<f4").astype(np.float32)
    state = {name: _array(array) for name, array in stored.state.items()}
    current = Global(weights, mask, state)
    return Checkpoint(
        stored.run, stored.artifact, stored.next_round, current, stored.duration_s, stored.averaged
    )


def _stored(array: npt.NDArray[Any]) -> _Array:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return _Array(little.dtype.str, array.shape, little.tobytes())


def _array(stored: _Array) -> npt.NDArray[Any]:
    dtype = np.dtype(stored.dtype)
    return np.frombuffer(stored.data, dtype).reshape(stored.shape).astype(dtype.newbyteorder("="))
