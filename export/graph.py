"""Plain ONNX -> the same network in sparsefleet ops, on blocked activations.

In the result
- a prunable weight is a vector of stored values, with its indices as a plain graph input
  "<weight>.indices": a new mask needs no new graph;
- activations are blocked (kernels/blocked.h) from Pack to Unpack, nothing in
  between is re-ordered;
- the logits are divided by the scalar input "temperature": 1 in training, 200 in GraSP's scoring;
- each batch norm also returns the batch's mean and variance as "<statistic>.batch".

What an ONNX operator becomes is one function in export/converters.py; operators that have no
sparsefleet form stay standard, between conversions (export/border.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.border import STANDARD, ours
from export.composites import DOMAIN as DOMAIN
from export.context import Context, Shape, activations
from export.converters import CONVERTERS, is_convertible, window
from export.patterns import rewrite
from export.trace import IR_VERSION, OPSET
from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, STATISTIC, Layout

# Their output has the shape and the halo of their inputs.
KEEP_HALO = ("Relu", "LeakyRelu", "Gelu", "Add", "AddWeight")


@dataclass
class Converted:
    """The network in sparsefleet ops and what the artifact must know of it."""

    model: onnx.ModelProto
    layout: Layout
    weights: dict[str, onnx.TensorProto]
    statistic_momentum: dict[str, float]  # Share of the batch's value in the running one, as in torch.
    num_classes: int
    sizes: dict[str, list[int | str]]  # Dimensions of the plain tensors, by name.


def convert(traced: onnx.ModelProto) -> Converted:
    """Return the traced network in sparsefleet ops.

    Raises:
        ArtifactError: an operator or one of its settings has no sparsefleet form; the text names it.
    """
    graph = rewrite(traced).graph
    shapes, ranks = activations(graph)
    logits = graph.output[0].name
    weights = {tensor.name: tensor for tensor in graph.initializer}
    context = Context(shapes, ranks, _halos(graph, shapes), weights, logits)
    # The plain form of the input is there from the start; names of the converted graph, not of weights.
    context.forms.add(graph.input[0].name)
    chosen = ours(graph, functools.partial(is_convertible, context), shapes)
    for position, node in enumerate(graph.node):
        if position in chosen:
            CONVERTERS[node.op_type](context, node)
        else:
            _keep(context, node)
    context.nodes.append(helper.make_node("Div", [context.plain(logits), "temperature"], [logits], "temper"))
    layout = Layout.of(
        (name, tuple(context.weights[name].dims), role) for name, role in context.roles.items()
    )
    plain = [info for info in graph.value_info if info.name in context.forms]
    sizes = {
        info.name: [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim] for info in plain
    }
    model = _model(graph, context, layout)
    model.graph.value_info.extend(plain)  # The gradient builder asks how the operands were broadcast.
    return Converted(model, layout, context.weights, context.momentum, shapes[logits][0], sizes)


def _keep(context: Context, node: NodeProto) -> None:
    if node.domain == DOMAIN:
        raise ArtifactError(
            f"{node.op_type} ({node.name}) works on [N, C, H, W], [N, T, D] or [N, F], the batch first"
        )
    if node.op_type not in STANDARD:
        raise ArtifactError(
            f"operator {node.op_type} ({node.name}) cannot be exported: it has no sparsefleet form, and no "
            f"gradient in standard operators. Our ops take the place of {', '.join(sorted(CONVERTERS))}; "
            f"{', '.join(sorted(STANDARD))} stay as they are. See docs/operators.md"
        )
    context.keep(node)


def _halos(graph: onnx.GraphProto, shapes: dict[str, Shape]) -> dict[str, int]:
    """Border of each activation.

    Enough for the convolution that reads it, and for the gradient of the convolution that wrote it (a
    gradient has the halo of its tensor). Element-wise operators keep the halo, so their tensors share one.
    """
    group = {name: name for name in shapes}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    need = dict.fromkeys(shapes, 0)
    for node in graph.node:
        if node.op_type in KEEP_HALO:
            for name in node.input:
                if name in group and node.output[0] in group:
                    group[root(name)] = root(node.output[0])
        if node.op_type == "Conv":
            kernel, stride, pad = window(node)
            source, target = node.input[0], node.output[0]
            need[source] = max(need[source], pad)
            for axis in (1, 2):
                before = (kernel[axis - 1] - 1 - pad) // stride
                after = (shapes[source][axis] - 1 + pad) // stride - (shapes[target][axis] - 1)
                need[target] = max(need[target], before, after)
    widest: dict[str, int] = {}
    for name, halo in need.items():
        widest[root(name)] = max(widest.get(root(name), 0), halo)
    return {name: widest[root(name)] for name in shapes}


def _model(graph: onnx.GraphProto, context: Context, layout: Layout) -> onnx.ModelProto:
    """Assemble the forward graph with dense weights: the form that the gradient builder takes."""
    prunable = layout.of_role(PRUNABLE)
    inputs = [
        graph.input[0],
        *(
            helper.make_tensor_value_info(f"{p.name}.indices", TensorProto.INT32, [f"{p.name}.nnz"])
            for p in prunable
        ),
        helper.make_tensor_value_info("temperature", TensorProto.FLOAT, []),
    ]
    initializers = []
    for piece in layout.pieces:
        value = numpy_helper.to_array(context.weights[piece.name])
        flat = value.reshape(-1) if piece.role == PRUNABLE else value
        initializers.append(numpy_helper.from_array(flat, piece.name))
    made = helper.make_graph(context.nodes, "sparsefleet", inputs, [graph.output[0]], initializers)
    for piece in layout.of_role(STATISTIC):  # generate_artifacts takes further outputs only from here.
        made.value_info.append(
            helper.make_tensor_value_info(f"{piece.name}.batch", TensorProto.FLOAT, piece.shape)
        )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="sparsefleet")
