"""Gradient operators that only the training build has, written in standard operators.

The gradient builder emits them for operators that stay standard between conversions
(export/border.py). LOWERED maps each to a function that returns the nodes in its place; what is not
in it is refused by name in export/lower.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.context import attributes_of
from export.simplify import constant
from protocol.errors import ArtifactError

Sizes = Mapping[str, Sequence[int | str]]  # Dimensions by tensor name, as far as they are known.
Integers = npt.NDArray[np.int64]


class Forward:
    """What a gradient must know of the training graph: dimensions, constants, and who measured a shape."""

    def __init__(self, graph: onnx.GraphProto, sizes: Sizes) -> None:
        """`sizes` are the dimensions of the plain tensors."""
        self._sizes = sizes
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._measured = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Shape"}

    def size(self, node: NodeProto, name: str, axis: int) -> int:
        """Length of a tensor along an axis."""
        size = self._sizes.get(name, ())[axis] if name in self._sizes else None
        if not isinstance(size, int):
            raise ArtifactError(f"{node.op_type} ({node.name}): the size of {name!r} is not known at export")
        return size

    def rank(self, name: str) -> int:
        """Number of dimensions."""
        return len(self._sizes[name])

    def measured(self, node: NodeProto, position: int) -> str:
        """The tensor whose shape an input holds."""
        name: str = self._measured.get(node.input[position], "")
        if name not in self._sizes:
            raise ArtifactError(f"{node.op_type} ({node.name}): a shape is not known at export")
        return name

    def constant(self, node: NodeProto, position: int) -> Integers:
        """The integers of a constant input."""
        if node.input[position] not in self._constants:
            raise ArtifactError(f"{node.op_type} ({node.name}): {node.input[position]!r} is no constant")
        return np.asarray(self._constants[node.input[position]], np.int64)


class _Formula:
    """Nodes that compute the first output of a training operator, named after it."""

    def __init__(self, node: NodeProto) -> None:
        self.node = node
        self.nodes: list[NodeProto] = []

    def of(self, op_type: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        name = to or f"{self.node.output[0]}/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def number(self, value: float) -> str:
        return self.array(np.asarray(value, np.float32))

    def array(self, value: npt.NDArray[np.generic]) -> str:
        name = f"{self.node.output[0]}/constant_{len(self.nodes)}"
        self.nodes.append(constant(name, value))
        return name

    def result(self, op_type: str, *inputs: str, **attributes: Any) -> list[NodeProto]:
        self.of(op_type, *inputs, to=self.node.output[0], **attributes)
        return self.nodes


def _sigmoid_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (dy, y) = _Formula(node), node.input
    return f.result("Mul", dy, f.of("Mul", y, f.of("Sub", f.number(1), y)))


def _tanh_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (dy, y) = _Formula(node), node.input
    return f.result("Mul", dy, f.of("Sub", f.number(1), f.of("Mul", y, y)))


def _relu_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (dy, x) = _Formula(node), node.input
    return f.result("Mul", dy, f.of("Sign", f.of("Relu", x)))


def _softmax_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (dy, y) = _Formula(node), node.input
    total = f.of("ReduceSum", f.of("Mul", dy, y), f.array(_axis(node)))
    return f.result("Mul", y, f.of("Sub", dy, total))


def _log_softmax_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (dy, y) = _Formula(node), node.input
    total = f.of("ReduceSum", dy, f.array(_axis(node)))
    return f.result("Sub", dy, f.of("Mul", f.of("Exp", y), total))


def _axis(node: NodeProto) -> Integers:
    return np.array([attributes_of(node).get("axis", -1)], np.int64)


def _quick_gelu(node: NodeProto, _: Forward) -> list[NodeProto]:
    """Write x * sigmoid(alpha * x): what the builder's optimizer makes of SiLU."""
    f, (x,) = _Formula(node), node.input
    return f.result("Mul", x, f.of("Sigmoid", f.of("Mul", x, f.number(_alpha(node)))))


def _quick_gelu_grad(node: NodeProto, _: Forward) -> list[NodeProto]:
    """Write dy * (s + u * s * (1 - s)) with u = alpha * x and s = sigmoid(u)."""
    f, (dy, x) = _Formula(node), node.input
    u = f.of("Mul", x, f.number(_alpha(node)))
    s = f.of("Sigmoid", u)
    slope = f.of("Mul", f.of("Mul", u, s), f.of("Sub", f.number(1), s))
    return f.result("Mul", dy, f.of("Add", s, slope))


def _alpha(node: NodeProto) -> float:
    return float(attributes_of(node).get("alpha", 1.702))


def _scale(node: NodeProto, _: Forward) -> list[NodeProto]:
    f, (x, factor) = _Formula(node), node.input
    as_float = f.of("CastLike", factor, x)
    return f.result("Div" if attributes_of(node).get("scale_down", 0) else "Mul", x, as_float)


def _concat(node: NodeProto, forward: Forward) -> list[NodeProto]:
    """Concat that also returns the length of each input, which the gradient splits by."""
    axis = int(attributes_of(node)["axis"])
    nodes = [helper.make_node("Concat", node.input, node.output[:1], node.name, axis=axis)]
    if len(node.output) > 1:
        lengths = [forward.size(node, name, axis) for name in node.input]
        nodes.append(constant(node.output[1], np.array(lengths, np.int64)))
    return nodes


def _split(node: NodeProto, _: Forward) -> list[NodeProto]:
    axis = int(attributes_of(node).get("axis", 0))
    return [helper.make_node("Split", node.input, node.output, node.name, axis=axis)]


def _slice_grad(node: NodeProto, forward: Forward) -> list[NodeProto]:
    """Zeros around the gradient, where nothing was taken. Inputs dy, shape, starts, ends, axes, steps."""
    source = forward.measured(node, 1)
    starts, ends, axes = (forward.constant(node, position) for position in (2, 3, 4))
    if len(node.input) > 5 and set(forward.constant(node, 5).tolist()) != {1}:
        raise ArtifactError(f"Slice ({node.name}): steps other than 1 are not supported")
    pads = np.zeros((2, forward.rank(source)), np.int64)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        size = forward.size(node, source, int(axis))
        begin, stop, _ = slice(int(start), int(end)).indices(size)
        pads[:, axis] = begin, size - stop
    f = _Formula(node)
    return f.result("Pad", node.input[0], f.array(pads.reshape(-1)))


def _gather_grad(node: NodeProto, forward: Forward) -> list[NodeProto]:
    """The same for one index. Inputs shape, index, dy."""
    source, index = forward.measured(node, 0), forward.constant(node, 1)
    if index.size != 1:
        raise ArtifactError(f"Gather ({node.name}): more than one index is not supported")
    axis = int(attributes_of(node).get("axis", 0)) % forward.rank(source)
    size = forward.size(node, source, axis)
    begin = int(index.reshape(-1)[0]) % size
    pads = np.zeros((2, forward.rank(source)), np.int64)
    pads[:, axis] = begin, size - begin - 1
    f = _Formula(node)
    dy = (
        node.input[2] if index.ndim else f.of("Unsqueeze", node.input[2], f.array(np.array([axis], np.int64)))
    )
    return f.result("Pad", dy, f.array(pads.reshape(-1)))


LOWERED: dict[str, Callable[[NodeProto, Forward], list[NodeProto]]] = {
    "SigmoidGrad": _sigmoid_grad,
    "TanhGrad": _tanh_grad,
    "ReluGrad": _relu_grad,
    "SoftmaxGrad_13": _softmax_grad,
    "LogSoftmaxGrad_13": _log_softmax_grad,
    "QuickGelu": _quick_gelu,
    "QuickGeluGrad": _quick_gelu_grad,
    "Scale": _scale,
    "ConcatTraining": _concat,
    "SplitTraining": _split,
    "SliceGrad": _slice_grad,
    "GatherGrad": _gather_grad,
}
