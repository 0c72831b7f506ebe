"""The little of ONNX's file format that the benchmarks need where no onnx package is: on a board.

ONNX is protobuf: fields, each a number, a kind and a payload. Two kinds occur here: integers
(varint), and bytes with a length, which are strings or further messages. `nodes` reads the nodes of a
graph; `model` writes a graph; `with_outputs` adds outputs to one, for protobuf merges a message that
occurs twice. Field numbers: onnx/onnx.proto, of which these have never changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.errors import ArtifactError

FLOAT, UINT8, INT32, INT64 = 1, 2, 6, 7  # onnx.TensorProto.DataType
DOMAIN = "sparsefleet"
IR_VERSION, OPSET = 9, 15

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One node; integer and float attributes only, which is all that ours have."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    name: str = ""
    domain: str = DOMAIN


@dataclass(frozen=True)
class Value:
    """A graph's input or output: its name, element type and number of dimensions, of any size."""

    name: str
    element: int
    rank: int | None = None  # None: left to the runtime.


def nodes(model: bytes) -> list[Node]:
    """Return the nodes of a serialized model, in order.

    Raises:
        ArtifactError: these bytes are no protobuf message.
    """
    found = []
    for number, graph in _fields(model):
        if number == 7 and isinstance(graph, bytes):
            found += [_node(raw) for key, raw in _fields(graph) if key == 1 and isinstance(raw, bytes)]
    return found


def model(nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
    """Return a model of these nodes."""
    graph = b"".join(_bytes(1, _encoded(node)) for node in nodes) + _bytes(2, b"bench")
    graph += b"".join(_bytes(11, _info(value)) for value in inputs)
    graph += b"".join(_bytes(12, _info(value)) for value in outputs)
    opsets = [_bytes(1, b"") + _int(2, OPSET), _bytes(1, DOMAIN.encode()) + _int(2, 1)]
    return _int(1, IR_VERSION) + _bytes(7, graph) + b"".join(_bytes(8, opset) for opset in opsets)


def with_outputs(model: bytes, outputs: Sequence[Value]) -> bytes:
    """Return the model with further outputs, which name values inside it."""
    return model + _bytes(7, b"".join(_bytes(12, _info(value)) for value in outputs))


def _node(raw: bytes) -> Node:
    names: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""], 7: [""]}
    attributes: dict[str, int | float] = {}
    for number, payload in _fields(raw):
        if number in names and isinstance(payload, bytes):
            names[number].append(payload.decode())
        elif number == 5 and isinstance(payload, bytes):
            one = dict(_fields(payload))
            key, value = one.get(1), one.get(2, one.get(3))  # Its float, or else its integer.
            if isinstance(key, bytes) and isinstance(value, int | float):
                attributes[key.decode()] = value
    return Node(names[4][-1], tuple(names[1]), tuple(names[2]), attributes, names[3][-1], names[7][-1])


def _encoded(node: Node) -> bytes:
    out = b"".join(_bytes(1, name.encode()) for name in node.inputs)
    out += b"".join(_bytes(2, name.encode()) for name in node.outputs)
    out += _bytes(3, node.name.encode()) + _bytes(4, node.op_type.encode()) + _bytes(7, node.domain.encode())
    for name, value in node.attributes.items():
        if isinstance(value, int):
            payload = _int(3, value) + _int(20, 2)
        else:
            payload = _tag(2, _FIXED32) + struct.pack("<f", value) + _int(20, 1)
        out += _bytes(5, _bytes(1, name.encode()) + payload)
    return out


def _info(value: Value) -> bytes:
    tensor = _int(1, value.element)
    if value.rank is not None:
        tensor += _bytes(2, b"".join(_bytes(1, b"") for _ in range(value.rank)))
    return _bytes(1, value.name.encode()) + _bytes(2, _bytes(1, tensor))


def _fields(raw: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield number, value - (1 << 64) if value >= 1 << 63 else value
            continue
        length = 8 if kind == _FIXED64 else 4
        if kind == _BYTES:
            length, at = _varint(raw, at)
        elif kind not in (_FIXED64, _FIXED32):
            raise ArtifactError(f"no ONNX model: a field of kind {kind}")
        if at + length > len(raw):
            raise ArtifactError("no ONNX model: it ends within a field")
        payload = raw[at : at + length]
        yield number, struct.unpack("<f", payload)[0] if kind == _FIXED32 else payload
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ArtifactError("no ONNX model: it ends within a number")


def _tag(number: int, kind: int) -> bytes:
    return _number(number << 3 | kind)


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _int(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _number(value)


def _bytes(number: int, payload: bytes) -> bytes:
    return _tag(number, _BYTES) + _number(len(payload)) + payload
