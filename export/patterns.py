"""Groups of standard operators that mean one op of ours, found in a simplified graph.

MatMul(x, Transpose(weight)) [+ bias]           -> Linear            torch's Linear without a bias, or on tokens
Reshape to [N, C, H * W], Transpose(0, 2, 1)    -> Tokens            x.flatten(2).transpose(1, 2)
Reshape to [N, F]                               -> Flatten           x.view(x.size(0), -1)
Flatten of anything but images                  -> Reshape           which has a gradient in standard form
ReduceMean over the map, or over the tokens     -> GlobalAveragePool x.mean((2, 3)), x.mean(1)
Add(x, weight of one example's shape)           -> AddWeight         position embeddings
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import NodeProto, helper

from export.composites import DOMAIN
from export.context import activations, attributes_of
from export.simplify import constant


def rewrite(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the groups above replaced by single nodes of our domain."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = _Graph(model.graph)
    for node in list(model.graph.node):
        for pattern in (_linear, _biased, _tokens, _flatten, _plain_flatten, _mean, _embedding):
            if pattern(graph, node):
                break
    kept = [node for node in graph.nodes if any(graph.uses[name] for name in node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


class _Graph:
    """Nodes in order, which ones write a tensor, and how many read it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.shapes, self.ranks = activations(graph)
        self.sizes = {
            info.name: [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim]
            for info in [*graph.input, *graph.value_info, *graph.output]
        }
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(output.name for output in graph.output)
        self.writer = {name: node for node in graph.node for name in node.output}

    def only_reader_of(self, node: NodeProto, position: int, op_type: str) -> NodeProto | None:
        """The node that wrote an input, if it is of this type and nobody else reads it."""
        name = node.input[position]
        source = self.writer.get(name)
        return source if source is not None and source.op_type == op_type and self.uses[name] == 1 else None

    def replace(self, node: NodeProto, op_type: str, inputs: list[str]) -> bool:
        """Put a node of our domain in place of `node`; what only `node` read is no longer used."""
        self.uses.subtract(node.input)
        self.uses.update(inputs)
        made = helper.make_node(op_type, inputs, node.output[:1], name=node.name, domain=DOMAIN)
        self.nodes[self.nodes.index(node)] = made
        self.writer[node.output[0]] = made
        self._forget_unused()
        return True

    def _forget_unused(self) -> None:
        for node in reversed(list(self.nodes)):
            if not any(self.uses[name] for name in node.output):
                self.nodes.remove(node)
                self.uses.subtract(node.input)


def _linear(graph: _Graph, node: NodeProto) -> bool:
    transpose = graph.writer.get(node.input[1]) if node.op_type == "MatMul" else None
    if (
        transpose is None
        or transpose.op_type != "Transpose"
        or graph.ranks.get(node.input[0], 0) not in (2, 3)
    ):
        return False
    weight = transpose.input[0]
    if len(graph.weights.get(weight, [])) != 2:
        return False
    return graph.replace(node, "Linear", [node.input[0], weight])


def _biased(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type != "Add":
        return False
    for position, other in ((0, 1), (1, 0)):
        linear = graph.only_reader_of(node, position, "Linear")
        bias = node.input[other]
        if linear is not None and len(linear.input) == 2 and len(graph.weights.get(bias, [])) == 1:
            return graph.replace(node, "Linear", [*linear.input, bias])
    return False


def _tokens(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type != "Transpose" or list(attributes_of(node)["perm"]) != [0, 2, 1]:
        return False
    reshape = graph.only_reader_of(node, 0, "Reshape")
    if reshape is None or graph.ranks.get(reshape.input[0]) != 4:
        return False
    channels, height, width = graph.shapes[reshape.input[0]]
    if graph.sizes.get(reshape.output[0], [])[1:] != [channels, height * width]:
        return False
    return graph.replace(node, "Tokens", [reshape.input[0]])


def _flatten(graph: _Graph, node: NodeProto) -> bool:
    is_flat = node.op_type == "Reshape" and graph.ranks.get(node.output[0]) == 2
    if not is_flat or graph.ranks.get(node.input[0]) != 4:
        return False
    channels, height, width = graph.shapes[node.input[0]]
    if graph.shapes[node.output[0]][0] != channels * height * width:
        return False
    return graph.replace(node, "Flatten", [node.input[0]])


def _plain_flatten(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type != "Flatten" or graph.ranks.get(node.input[0]) == 4 or node.output[0] not in graph.shapes:
        return False
    target = constant(f"{node.output[0]}/target", np.array([-1, graph.shapes[node.output[0]][0]], np.int64))
    graph.uses[target.output[0]] += 1
    graph.nodes.insert(graph.nodes.index(node), target)
    node.op_type = "Reshape"
    del node.attribute[:]
    node.input.append(target.output[0])
    return True


def _mean(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type != "ReduceMean":
        return False
    rank = graph.ranks.get(node.input[0], 0)
    axes = sorted(int(axis) % max(rank, 1) for axis in attributes_of(node).get("axes", ()))
    is_whole_map = (rank, axes) in ((4, [2, 3]), (3, [1]))
    keeps = bool(attributes_of(node).get("keepdims", 1))
    if not is_whole_map or (rank == 3 and keeps):
        return False
    return graph.replace(node, "GlobalAveragePool", [node.input[0]])


def _embedding(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type != "Add":
        return False
    for x, weight in (node.input, reversed(node.input)):
        shape = graph.weights.get(weight)
        if (
            shape is not None
            and x in graph.shapes
            and [1, *graph.sizes[x][1:]] == [1] * (graph.ranks[x] - len(shape)) + shape
        ):
            return graph.replace(node, "AddWeight", [x, weight])
    return False
