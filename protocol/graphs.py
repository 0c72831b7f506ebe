"""What an ONNX graph may contain, checked on its bytes before any runtime sees them, and without the onnx package.

A device trains what its coordinator sends. So that such a graph can compute, and do nothing else, it is refused if it

- has control flow (If, Loop, Scan), functions of its own, or subgraphs in any attribute: no bound on its steps;
- reads other files (external data);
- uses an operator or a domain that is not listed below.

The reader walks protobuf's wire format (protobuf.dev/programming-guides/encoding); the field numbers are those of
onnx.proto3, which never change. What it cannot follow is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from protocol.errors import ArtifactError

OURS = "sparsefleet"  # Ops of our own library: each checks its inputs.
# Of ONNX itself: arithmetic, shapes and reductions. None has a subgraph, a state, randomness, or reads a file.
_STANDARD = """
    Abs Add And Cast CastLike Ceil Clip Concat Constant ConstantOfShape CumSum Div Equal Erf Exp Expand Flatten Floor
    Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul Max Min Mod Mul Neg Not OneHot Or Pad Pow Range Reciprocal ReduceL2 ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round ScatterElements ScatterND Shape Sigmoid Sign Size Slice
    Softmax SoftmaxCrossEntropyLoss Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
"""
STANDARD = frozenset(_STANDARD.split())
# Of ONNX Runtime's own domain: what its training API runs, where that is installed; and every gradient.
MICROSOFT = frozenset(
    (
        "ConcatTraining",
        "FusedMatMul",
        "InPlaceAccumulatorV2",
        "QuickGelu",
        "SGDOptimizerV2",
        "Scale",
        "SplitTraining",
    )
)
MICROSOFT_DOMAIN = "com.microsoft"
GRADIENT = re.compile(r"[A-Za-z]+Grad(_\d+)?\Z")

# onnx.proto3: field numbers, by message.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE_INITIALIZER = 1, 5, 15
NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_NODES = 100_000


def check_graph(name: str, model: bytes) -> None:
    """Do nothing if the model may run here.

    Raises:
        ArtifactError: it may not, or cannot be read; the text says what it contains.
    """
    try:
        _model(memoryview(model))
    except ArtifactError as error:
        raise ArtifactError(f"{name} is refused: {error}") from error
    except (IndexError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{name} is refused: it is not an ONNX model ({error!r})") from error


def _model(model: memoryview) -> None:
    graphs = 0
    for field, value in _fields(model):
        if field == MODEL_GRAPH:
            graphs += 1
            _graph(_message(value))
        elif field in (MODEL_TRAINING, MODEL_FUNCTIONS):
            raise ArtifactError("it brings functions or training graphs of its own")
    if graphs != 1:
        raise ArtifactError(f"it has {graphs} graphs")


def _graph(graph: memoryview) -> None:
    num_nodes = 0
    for field, value in _fields(graph):
        if field == GRAPH_NODE:
            num_nodes += 1
            if num_nodes > MAX_NODES:
                raise ArtifactError(f"it has more than {MAX_NODES} nodes")
            _node(_message(value))
        elif field == GRAPH_INITIALIZER:
            _tensor(_message(value))
        elif field == GRAPH_SPARSE_INITIALIZER:
            raise ArtifactError("it has sparse initializers")


def _node(node: memoryview) -> None:
    operator, domain = "", ""
    for field, value in _fields(node):
        if field == NODE_OP_TYPE:
            operator = str(_message(value), "utf-8")
        elif field == NODE_DOMAIN:
            domain = str(_message(value), "utf-8")
        elif field == NODE_ATTRIBUTE:
            _attribute(_message(value))
    if not _is_listed(domain, operator):
        where = f" of the domain {domain[:64]!r}" if domain else ""
        raise ArtifactError(f"the operator {operator[:64]!r}{where} is not one that a device runs")


def _is_listed(domain: str, operator: str) -> bool:
    if domain == MICROSOFT_DOMAIN:
        return operator in MICROSOFT or GRADIENT.match(operator) is not None
    return domain == OURS or (domain in ("", "ai.onnx") and operator in STANDARD)


def _attribute(attribute: memoryview) -> None:
    for field, value in _fields(attribute):
        if field in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            raise ArtifactError("a node has a graph of its own: control flow")
        if field in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _tensor(_message(value))


def _tensor(tensor: memoryview) -> None:
    for field, value in _fields(tensor):
        if field == TENSOR_EXTERNAL_DATA or (field == TENSOR_DATA_LOCATION and value != 0):
            raise ArtifactError("a tensor lies in another file: external data")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ArtifactError("it is not an ONNX model: a number where a message should be")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; values of fixed length are not of interest and come as 0."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        value: int | memoryview = 0
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ArtifactError("it is not an ONNX model: an unknown wire type")
        if at > len(message):
            raise ArtifactError("it is not an ONNX model: a field that is longer than the message")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ArtifactError("it is not an ONNX model: a number without an end")
