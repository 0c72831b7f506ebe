"""The artifact folder's manifest: what export writes, and coordinator and client read.

manifest.json          this: layout, shapes, operators, digests
step.onnx              one training step for any onnxruntime: loss, gradients, batch statistics
step_compressed.onnx   the same with less memory: activations wait for the backward pass compressed
step_half.onnx         the same with still less, at half precision
eval.onnx              logits from the dense weights, standard operators only
initial.bin            the initial weights, one flat little-endian float32 vector
origin.bin             of a narrowed model: its positions in the whole one, little-endian int32
training_model.onnx, eval_model.onnx, optimizer_model.onnx, checkpoint
the four artifacts of ONNX Runtime's own training API
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from protocol.errors import ArtifactError, MalformedMessage
from protocol.layout import Layout, Vector
from protocol.messages import BlobRef
from protocol.sparse import Mask

FORMAT = 1
BLOCK_EXAMPLES = 16  # The innermost axis of blocked activations.
CROSS_ENTROPY, MSE = "cross_entropy", "mse"
LOSSES = (CROSS_ENTROPY, MSE)
MANIFEST = "manifest.json"
STEP, EVAL, INITIAL, ORIGIN = "step.onnx", "eval.onnx", "initial.bin", "origin.bin"
TRAINING_MODEL, EVAL_MODEL, OPTIMIZER_MODEL = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx"
CHECKPOINT = "checkpoint"
STEP_COMPRESSED, STEP_HALF = "step_compressed.onnx", "step_half.onnx"
FILES = (
    STEP,
    STEP_COMPRESSED,
    STEP_HALF,
    EVAL,
    INITIAL,
    TRAINING_MODEL,
    EVAL_MODEL,
    OPTIMIZER_MODEL,
    CHECKPOINT,
)


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder: SHA-256 and length."""

    digest: str
    size: int

    @property
    def ref(self) -> BlobRef:
        """The file as a blob."""
        return BlobRef(self.digest, self.size)


@dataclass(frozen=True)
class GraphMemory:
    """What a step graph holds between its nodes at its peak, as export found it (export/liveness.py)."""

    num_nodes: int
    activation_bytes: tuple[int, ...]  # Resident at the peak for a batch of 1, 2, 3, ... blocks.

    def activations(self, batch_size: int) -> int:
        """Bytes for a batch of this size; in proportion to the blocks beyond the last that is listed."""
        blocks, listed = -(-batch_size // BLOCK_EXAMPLES), len(self.activation_bytes)
        if blocks <= listed:
            return self.activation_bytes[blocks - 1]
        return -(-self.activation_bytes[-1] * blocks // listed)


@dataclass(frozen=True)
class Manifest:
    """What an artifact contains. The raw bytes are kept: their digest names the artifact."""

    model: str
    input_shape: tuple[int, ...]
    num_classes: int  # Length of the output: classes, or values of a regression.
    loss: str  # Of LOSSES: softmax cross-entropy of integer labels, or mean squared error of float32 ones.
    layout: Layout
    statistic_momentum: dict[str, float]
    operators: tuple[str, ...]
    versions: dict[str, str]
    files: dict[str, FileEntry]
    memory: dict[str, GraphMemory]  # By file; empty in artifacts that were exported before it was known.
    raw: bytes
    origin_size: int = 0  # Values of the whole model, where this is a narrowed one.

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest file: names the whole artifact, since it names every file."""
        return hashlib.sha256(self.raw).hexdigest()

    def file(self, name: str) -> FileEntry:
        """Return one file's entry.

        Raises:
            ArtifactError: the manifest does not name it.
        """
        if name not in self.files:
            raise ArtifactError(f"the artifact has no file {name!r}; it was exported by another version")
        return self.files[name]


# The file as it must be: typed decoding refuses anything else before it takes memory.

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Shape = Annotated[tuple[_Count, ...], msgspec.Meta(max_length=16)]


class _Piece(msgspec.Struct):
    name: str
    shape: _Shape
    role: str


class _Entry(msgspec.Struct):
    sha256: str
    size: _Count


class _Memory(msgspec.Struct):
    num_nodes: _Count
    activation_bytes: Annotated[tuple[_Count, ...], msgspec.Meta(min_length=1, max_length=1024)]


class _Format(msgspec.Struct):
    format: int


class _Fields(_Format):
    model: str
    input_shape: _Shape
    num_classes: _Count
    layout: list[_Piece]
    statistic_momentum: dict[str, float]
    operators: tuple[str, ...]
    versions: dict[str, str]
    files: dict[str, _Entry]
    loss: str = CROSS_ENTROPY
    memory: dict[str, _Memory] = {}
    origin_size: _Count = 0


def dump(fields: dict[str, Any]) -> bytes:
    """Return the manifest file for the given fields; the same fields give the same bytes."""
    return json.dumps({"format": FORMAT, **fields}, indent=1, sort_keys=True).encode() + b"\n"


def parse(raw: bytes) -> Manifest:
    """Return the manifest in `raw`.

    Raises:
        ArtifactError: not JSON, another format version, or a field is missing or of another type.
    """
    try:
        version = msgspec.json.decode(raw, type=_Format).format
        if version != FORMAT:
            raise ArtifactError(f"the artifact has format {version}; this version reads {FORMAT}")
        fields = msgspec.json.decode(raw, type=_Fields)
        return Manifest(
            model=fields.model,
            input_shape=fields.input_shape,
            num_classes=fields.num_classes,
            loss=_loss(fields.loss),
            layout=Layout.from_json([msgspec.structs.asdict(piece) for piece in fields.layout]),
            statistic_momentum=fields.statistic_momentum,
            operators=fields.operators,
            versions=fields.versions,
            files={name: FileEntry(entry.sha256, entry.size) for name, entry in fields.files.items()},
            memory={
                name: GraphMemory(one.num_nodes, one.activation_bytes) for name, one in fields.memory.items()
            },
            raw=raw,
            origin_size=fields.origin_size,
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the artifact's manifest is damaged: {error}") from error


def _loss(name: str) -> str:
    if name not in LOSSES:
        raise ArtifactError(f"the artifact's loss is {name!r}; this version knows {', '.join(LOSSES)}")
    return name


def read(folder: Path) -> Manifest:
    """Read and verify a whole artifact folder.

    Raises:
        ArtifactError: the manifest or a file is missing, or a file is not the one that was exported.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{path} not found; make an artifact with: sparsefleet export MODEL --out {folder}"
        )
    manifest = parse(path.read_bytes())
    for name, entry in manifest.files.items():
        check(folder / name, entry)
    return manifest


def check(path: Path, entry: FileEntry) -> None:
    """Compare one file with its entry.

    Raises:
        ArtifactError: it is missing or has other bytes.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing from the artifact; export it again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry.digest:
        raise ArtifactError(
            f"{path} has SHA-256 {digest[:12]}..., the manifest says {entry.digest[:12]}...: "
            "the file was changed or damaged after export; export it again"
        )


def weights(raw: bytes, layout: Layout) -> Vector:
    """Return the flat vector in the bytes of initial.bin.

    Raises:
        ArtifactError: another length than the layout's, or values that are not finite.
    """
    if len(raw) != 4 * layout.size:
        raise ArtifactError(f"initial weights have {len(raw)} bytes, the layout needs {4 * layout.size}")
    flat = np.frombuffer(raw, "<f4").astype(np.float32)
    if not bool(np.isfinite(flat).all()):
        raise ArtifactError("initial weights contain NaN or infinity")
    return flat


def origin(raw: bytes, manifest: Manifest) -> Mask:
    """Return what the bytes of origin.bin say: the mask of a narrowed model's weights in the whole model.

    Raises:
        ArtifactError: the model is not a narrowed one, or the bytes are not its positions.
    """
    if not manifest.origin_size:
        raise ArtifactError(f"the artifact of {manifest.model!r} is not narrowed: it has no origin")
    if len(raw) != 4 * manifest.layout.size:
        raise ArtifactError(f"the origin has {len(raw)} bytes, the layout needs {4 * manifest.layout.size}")
    try:
        return Mask(np.frombuffer(raw, "<i4"), manifest.origin_size)
    except MalformedMessage as error:
        raise ArtifactError(f"the origin is damaged: {error}") from error
