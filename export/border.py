"""Which operators of a traced graph become ops of ours, and which stay standard.

An operator that has no sparsefleet form stays as it is, between conversions of its activations. A
conversion costs as much as the pass it replaces, so operators that exist on both sides (FLEXIBLE)
go where they save conversions: the Relu between two Sigmoids stays standard with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx
from onnx import NodeProto

FLEXIBLE = ("Relu", "Add")

# What may stay standard: onnxruntime 1.19.2 builds its gradient, and a stock build can run that.
STANDARD = frozenset(
    (
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Div",
        "Erf",
        "Exp",
        "Expand",
        "Gather",
        "Log",
        "LogSoftmax",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    )
)


def ours(
    graph: onnx.GraphProto, can_be_ours: Callable[[NodeProto], bool], activations: Collection[str]
) -> set[int]:
    """Positions of the nodes that are converted, so that few activations are needed in both forms."""
    chosen = {position for position, node in enumerate(graph.node) if can_be_ours(node)}
    for region in _regions(graph, chosen, activations):
        without = chosen - region
        if _conversions(graph, without, activations) < _conversions(graph, chosen, activations):
            chosen = without
    return chosen


def _regions(graph: onnx.GraphProto, chosen: set[int], activations: Collection[str]) -> list[set[int]]:
    """Flexible nodes that share activations, together."""
    regions: list[tuple[set[int], set[str]]] = []
    for position in sorted(chosen):
        node = graph.node[position]
        if node.op_type not in FLEXIBLE:
            continue
        names = {name for name in [*node.input, *node.output] if name in activations}
        members = {position}
        for region in [r for r in regions if r[1] & names]:
            regions.remove(region)
            members |= region[0]
            names |= region[1]
        regions.append((members, names))
    return [members for members, _ in regions]


def _conversions(graph: onnx.GraphProto, chosen: set[int], activations: Collection[str]) -> int:
    """How many Pack and Unpack a choice needs. The graph's input and output are plain."""
    blocked: set[str] = set()
    converted: set[str] = set()
    for position, node in enumerate(graph.node):
        is_ours = position in chosen
        converted |= {name for name in node.input if name in activations and (name in blocked) != is_ours}
        if is_ours:
            blocked.update(node.output)
    return len(converted) + len(blocked & {output.name for output in graph.output} - converted)
