"""Which channels of a network belong together: what is removed in one place must go in all of them.

A channel that a convolution writes is read by the batch norm behind it and by the next convolution, and
an addition ties it to the channel of its other operand, so that a residual stage has one width. All
places of such a channel form a group. Groups are found in the traced graph, so they hold for any
module, however it is written.

A group keeps its full width where removing a channel would be another function altogether: the input,
the logits, what layer norm or attention mixes, and every operator that is not listed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import NodeProto

from export.context import Shape, activations, attributes_of
from export.patterns import rewrite


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter that has `repeat` entries for each channel, one channel's behind another's."""

    parameter: str
    axis: int
    repeat: int


@dataclass
class Group:
    """Channels that are removed together."""

    size: int
    axes: list[Axis] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)  # Weights whose axis 0 writes the channels.
    scales: list[str] = field(default_factory=list)  # Of the norms that the channels pass.
    partition: int = 1  # Group norm: as many of each so-manieth part must stay.
    fixed: str = ""  # Why it keeps its width.

    def absorb(self, other: Group) -> None:
        """Take over another group's places."""
        self.axes += other.axes
        self.writers += other.writers
        self.scales += other.scales
        self.partition = math.lcm(self.partition, other.partition)
        self.fixed = self.fixed or other.fixed


@dataclass(frozen=True)
class Network:
    """What narrowing needs of a traced network."""

    groups: list[Group]
    shapes: dict[str, tuple[int, ...]]  # Of the parameters and statistics.
    pixels: dict[str, int]  # Weight -> output pixels of one example; linear and convolution weights only.


# Channel c of the output is channel c of the (first) input.
KEEP = ("Relu", "LeakyRelu", "Gelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Dropout", "Tokens")


def analyse(traced: onnx.ModelProto) -> Network:
    """Return the channel groups of a traced network (export/trace.py)."""
    graph = rewrite(traced).graph
    finder = _Finder(graph)
    for node in graph.node:
        finder.visit(node)
    finder.fix(graph.output[0].name, "the logits")
    return Network(finder.groups(), finder.parameters, finder.pixels)


class _Finder:
    """Union-find over groups; a tensor refers to one with a number of entries for each channel."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.shapes: dict[str, Shape] = activations(graph)[0]
        self.parameters = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.pixels: dict[str, int] = {}
        self._groups: list[Group] = []
        self._parent: list[int] = []
        self._of: dict[str, tuple[int, int]] = {}  # Tensor -> group, repeat.
        self._new(graph.input[0].name, "the input")

    def visit(self, node: NodeProto) -> None:
        """Tie what one node ties."""
        handler = _HANDLERS.get(node.op_type)
        if handler is not None and self.group(node.input[0]) is not None:
            handler(self, node)
        else:
            for name in [*node.input, *node.output]:
                self.fix(name, f"{node.op_type} ({node.name})")

    def groups(self) -> list[Group]:
        """Each group once, in the order of the network."""
        return [self._groups[i] for i in range(len(self._groups)) if self._parent[i] == i]

    def group(self, tensor: str) -> tuple[Group, int] | None:
        """Group of a tensor's channels and entries for each; None for what is no activation."""
        if tensor not in self._of and tensor in self.shapes:
            self._new(tensor, "")
        if tensor not in self._of:
            return None
        index, repeat = self._of[tensor]
        return self._groups[self._root(index)], repeat

    def fix(self, tensor: str, why: str) -> None:
        """Keep the width of a tensor."""
        found = self.group(tensor)
        if found is not None:
            found[0].fixed = found[0].fixed or why

    def same(self, target: str, source: str, factor: int = 1) -> None:
        """`target` has the channels of `source`, `factor` times as many entries for each."""
        index, repeat = self._of[source]
        self._of[target] = (index, repeat * factor)

    def tie(self, a: str, b: str) -> bool:
        """Make two tensors' channels one; False if they cannot be."""
        if self.group(a) is None or self.group(b) is None or self._of[a][1] != self._of[b][1]:
            return False
        first, second = self._root(self._of[a][0]), self._root(self._of[b][0])
        if self._groups[first].size != self._groups[second].size:
            return False
        if first != second:
            self._groups[first].absorb(self._groups[second])
            self._parent[second] = first
        return True

    def bind(self, tensor: str, parameter: str, axis: int) -> None:
        """An axis of a parameter has an entry for each of a tensor's."""
        found = self.group(tensor)
        if parameter and found is not None:
            group, repeat = found
            group.axes.append(Axis(parameter, axis, repeat))

    def _new(self, tensor: str, fixed: str) -> None:
        self._of[tensor] = (len(self._groups), 1)
        self._parent.append(len(self._groups))
        self._groups.append(Group(self.shapes[tensor][0], fixed=fixed))

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            index = self._parent[index]
        return index


def _convolution(finder: _Finder, node: NodeProto) -> None:
    source, target, weight = node.input[0], node.output[0], node.input[1]
    bias = node.input[2] if len(node.input) > 2 else ""
    num_groups = attributes_of(node).get("group", 1)
    channels = finder.shapes[source][0]
    finder.pixels[weight] = finder.shapes[target][1] * finder.shapes[target][2]
    if num_groups == 1:
        finder.bind(source, weight, 1)
    elif num_groups == channels:  # Depthwise: the outputs belong to their input.
        finder.same(target, source, finder.shapes[target][0] // channels)
    else:
        finder.fix(source, f"grouped convolution ({node.name})")
        finder.fix(target, f"grouped convolution ({node.name})")
    _written(finder, target, weight, bias)


def _linear(finder: _Finder, node: NodeProto) -> None:
    source, target, weight = node.input[0], node.output[0], node.input[1]
    if node.op_type == "Gemm" and attributes_of(node).get("transB", 0) != 1:
        finder.fix(source, f"transposed weight ({node.name})")
        finder.fix(target, f"transposed weight ({node.name})")
        return
    finder.pixels[weight] = finder.shapes[target][2]
    finder.bind(source, weight, 1)
    _written(finder, target, weight, node.input[2] if len(node.input) > 2 else "")


def _written(finder: _Finder, target: str, weight: str, bias: str) -> None:
    finder.bind(target, weight, 0)
    finder.bind(target, bias, 0)
    found = finder.group(target)
    if found is not None and found[1] == 1:
        found[0].writers.append(weight)


def _norm(finder: _Finder, node: NodeProto) -> None:
    source, target = node.input[0], node.output[0]
    for parameter in node.input[1:]:
        finder.bind(source, parameter, 0)
    finder.same(target, source)
    found = finder.group(source)
    assert found is not None  # visit() asks first.
    group, repeat = found
    if repeat > 1 and node.op_type == "GroupNorm":
        group.fixed = group.fixed or f"group norm behind a depthwise convolution ({node.name})"
    if repeat == 1:
        group.scales.append(node.input[1])
    if node.op_type == "GroupNorm":
        group.partition = math.lcm(group.partition, attributes_of(node)["groups"])


def _keep(finder: _Finder, node: NodeProto) -> None:
    finder.same(node.output[0], node.input[0])


def _flatten(finder: _Finder, node: NodeProto) -> None:
    _, height, width = finder.shapes[node.input[0]]
    finder.same(node.output[0], node.input[0], height * width)


def _add(finder: _Finder, node: NodeProto) -> None:
    first, second = node.input[0], node.input[1]
    if not finder.tie(first, second):
        for name in (first, second):
            finder.fix(name, f"Add ({node.name})")
    finder.same(node.output[0], first)


_HANDLERS: dict[str, Callable[[_Finder, NodeProto], Any]] = {
    "Conv": _convolution,
    "Gemm": _linear,
    "Linear": _linear,
    "BatchNormalization": _norm,
    "GroupNorm": _norm,
    "Flatten": _flatten,
    "Add": _add,
    **dict.fromkeys(KEEP, _keep),
}
