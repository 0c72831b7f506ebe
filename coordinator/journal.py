"""What a run must not lose: one checkpoint file, replaced as a whole after each round.

A resumed run continues with the round after the last closed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zstandard

from protocol.durable import replace_file
from protocol.errors import ConfigError
from protocol.method import Global
from protocol.sparse import Mask

SCHEMA = 1
CHECKPOINT = "checkpoint.bin"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state between two rounds."""

    run: str
    artifact: str  # Digest of the manifest: a checkpoint of another model is refused.
    next_round: int
    current: Global
    duration_s: float  # Of the run so far.


class _Stored(msgspec.Struct):
    schema: int
    run: str
    artifact: str
    next_round: int
    size: int
    indices: bytes
    weights: bytes
    duration_s: float


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
        checkpoint.duration_s,
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
    return Checkpoint(
        stored.run, stored.artifact, stored.next_round, Global(weights, mask), stored.duration_s
    )
