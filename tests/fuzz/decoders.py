"""Every decoder that reads what a peer sent, with bytes it accepts: what fuzzing and the fault matrix begin from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from protocol import artifact, blobs, codec, graphs, messages
from protocol.blob_store import BlobStore
from protocol.errors import ArtifactError, ProtocolError
from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.sparse import Mask, SparseVector

GOLDEN = Path(__file__).parent.parent / "golden"
SIZE, PRUNED, ENDS = 612, 600, [100, 450, 600]  # The model of the golden bodies.
BLOB = bytes(range(256)) * 800  # Two chunks, the second shorter.


@dataclass(frozen=True)
class Decoder:
    """One decoder."""

    decode: Callable[[bytes], object]
    refuses_with: tuple[type[Exception], ...]  # Anything else that it raises is a bug.
    seeds: tuple[bytes, ...]


def golden(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(GOLDEN.glob(pattern)))


def _golden_masks() -> dict[str, Mask]:
    """Those that the golden bodies refer to."""
    found = []
    for nnz in (60, 100, 200, 300):
        for end in (599, 600):
            indices = np.concatenate([np.arange(nnz) * end // nnz, np.arange(600, 612)]).astype(np.int32)
            found.append(Mask(indices, SIZE))
    return {mask.digest: mask for mask in found}


MASKS = _golden_masks()


def decode_body(data: bytes) -> SparseVector:
    vector = codec.decode(data, SIZE, PRUNED, MASKS, ends=ENDS)
    assert vector.mask.nnz == vector.values.size <= SIZE
    assert not vector.mask.nnz or int(vector.mask.indices[-1]) < SIZE
    return vector


def take_in_chunk(data: bytes) -> None:
    """The chunk on its own, and then with all the others: the body is right, or refused."""
    ref = blobs.ref_of(BLOB)
    assembly, store = blobs.Assembly(ref, len(BLOB)), BlobStore(len(BLOB))
    store.put(BLOB)
    assembly.add(data)
    for index in assembly.missing:
        chunk = store.chunk(ref.digest, index)
        assert chunk is not None
        assembly.add(chunk)
    assert bytes(assembly.bytes()) == BLOB


def _manifest() -> bytes:
    layout = Layout.of([("weight", (40, 15), PRUNABLE), ("bias", (12,), DENSE)])
    files = {"step.onnx": {"sha256": "0" * 64, "size": 10}}
    memory = {"step.onnx": {"num_nodes": 3, "activation_bytes": [100, 200]}}
    fields = {"layout": layout.to_json(), "model": "m", "input_shape": [1, 8, 8], "num_classes": 10}
    rest = {"statistic_momentum": {"a": 0.1}, "operators": ["SparseConv"], "versions": {"onnx": "1.17"}}
    return artifact.dump({**fields, **rest, "files": files, "memory": memory, "origin_size": 1000})


MANIFEST = _manifest()


def read_origin(data: bytes) -> Mask:
    """A mask file."""
    return artifact.origin(data, artifact.parse(MANIFEST))


def _chunk(index: int) -> bytes:
    return blobs.pack_chunk(index, BLOB[index * blobs.CHUNK_BYTES : (index + 1) * blobs.CHUNK_BYTES])


def _graph() -> bytes:
    """One node, one constant."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    w = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    node = onnx.helper.make_node("Mul", ["x", "w"], ["y"])
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [x], initializer=[w])
    ).SerializeToString()


DECODERS = {
    "messages": Decoder(messages.decode, (ProtocolError,), golden("messages_*.bin")),
    "body": Decoder(decode_body, (ProtocolError,), golden("codec_v*.bin")),
    "body facts": Decoder(codec.describe, (ProtocolError,), golden("codec_v*.bin")),
    "chunk": Decoder(take_in_chunk, (ProtocolError,), (_chunk(0), _chunk(1))),
    "manifest": Decoder(
        artifact.parse, (ArtifactError,), (MANIFEST, json.dumps(json.loads(MANIFEST)).encode())
    ),
    "mask file": Decoder(read_origin, (ArtifactError,), (np.arange(SIZE, dtype="<i4").tobytes(),)),
    "graph": Decoder(lambda data: graphs.check_graph("x", data), (ArtifactError,), (_graph(),)),
    "weights": Decoder(
        lambda data: artifact.weights(data, artifact.parse(MANIFEST).layout),
        (ArtifactError,),
        (np.zeros(SIZE, "<f4").tobytes(),),
    ),
}
