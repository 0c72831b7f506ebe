"""Plain ONNX -> the same network in sparsefleet ops, on blocked activations.

In the result
- a prunable weight is a vector of stored values, with its indices as a plain graph input
  "<weight>.indices": a new mask needs no new graph;
- activations are blocked [N/16, C, H + 2*halo, W + 2*halo, 16] from Pack to Unpack, nothing in
  between is re-ordered;
- the logits are divided by the scalar input "temperature": 1 in training, 200 in GraSP's scoring;
- each batch norm also returns the batch's mean and variance as "<statistic>.batch".

What an ONNX operator becomes is one function in CONVERTERS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.trace import IR_VERSION, OPSET
from protocol.errors import ArtifactError
from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout

DOMAIN = "sparsefleet"
Shape = tuple[int, int, int]  # channels, height, width


@dataclass
class Converted:
    """The network in sparsefleet ops and what the artifact must know of it."""

    model: onnx.ModelProto
    layout: Layout
    weights: dict[str, onnx.TensorProto]
    statistic_momentum: dict[str, float]  # Share of the batch's value in the running one, as in torch.
    num_classes: int


@dataclass
class _Context:
    """What converters read and write."""

    shapes: dict[str, Shape]
    halos: dict[str, int]
    weights: dict[str, onnx.TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    momentum: dict[str, float] = field(default_factory=dict)

    def emit(
        self, op_type: str, node: NodeProto, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> None:
        name = node.name.strip("/") or node.output[0]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, domain=DOMAIN, **attributes))

    def weight(self, node: NodeProto, position: int, role: str) -> str:
        """Name of a weight input; its role is noted. Empty where the node has none."""
        name = node.input[position] if position < len(node.input) else ""
        if not name:
            return ""
        if name not in self.weights:
            raise ArtifactError(f"{node.op_type} {node.name!r}: input {name!r} is computed, not a weight")
        if name in self.roles:
            raise ArtifactError(f"weight {name!r} is used twice; shared weights are not supported")
        self.roles[name] = role
        return name


def convert(traced: onnx.ModelProto) -> Converted:
    """Return the traced network in sparsefleet ops.

    Raises:
        ArtifactError: an operator or one of its settings has no sparsefleet form; the text names it.
    """
    graph = traced.graph
    for node in graph.node:
        if node.op_type not in CONVERTERS:
            raise ArtifactError(
                f"operator {node.op_type} ({node.name}) cannot be exported; supported are "
                f"{', '.join(sorted(CONVERTERS))}. Flatten with torch.flatten(x, 1) or nn.Flatten()."
            )
    shapes = _shapes(graph)
    context = _Context(shapes, _halos(graph, shapes), {t.name: t for t in graph.initializer})
    first = graph.input[0].name
    context.nodes.append(
        helper.make_node(
            "Pack", [first], [_blocked(first), "count"], "pack", domain=DOMAIN, out_halo=context.halos[first]
        )
    )
    for node in graph.node:
        CONVERTERS[node.op_type](context, node)
    logits = graph.output[0].name
    context.nodes.append(
        helper.make_node("Unpack", [_blocked(logits), "count"], ["scores"], "unpack", domain=DOMAIN)
    )
    context.nodes.append(helper.make_node("Div", ["scores", "temperature"], [logits], "temper"))
    layout = Layout.of(
        (name, tuple(context.weights[name].dims), role) for name, role in context.roles.items()
    )
    return Converted(
        _model(graph, context, layout), layout, context.weights, context.momentum, shapes[logits][0]
    )


def _blocked(name: str) -> str:
    return name + "/blocked"


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Channels, height and width of every activation; vectors are (features, 1, 1)."""
    shapes: dict[str, Shape] = {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        if len(dims) == 4 and all(dims[1:]):
            shapes[info.name] = (dims[1], dims[2], dims[3])
        elif len(dims) == 2 and dims[1]:
            shapes[info.name] = (dims[1], 1, 1)
    for node in graph.node:
        for name in (node.input[0], node.output[0]):
            if name not in shapes:
                raise ArtifactError(f"the shape of {name!r} ({node.op_type}) is not known at export")
    return shapes


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
        if node.op_type in ("Relu", "Add"):
            for name in node.input:
                if name in group:
                    group[root(name)] = root(node.output[0])
        if node.op_type == "Conv":
            kernel, stride, pad = _window(node)
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


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _refuse(node: NodeProto, what: str) -> None:
    raise ArtifactError(f"{node.op_type} {node.name!r}: {what} is not supported")


def _window(node: NodeProto) -> tuple[tuple[int, int], int, int]:
    """Kernel, stride and padding of a convolution or pool; what has no sparsefleet form is refused."""
    attributes = _attributes(node)
    kernel = tuple(attributes["kernel_shape"])
    strides = tuple(attributes.get("strides", (1,) * len(kernel)))
    pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel)))
    if len(kernel) != 2:
        _refuse(node, f"a {len(kernel)}-dimensional kernel")
    if len(set(strides)) != 1 or len(set(pads)) != 1:
        _refuse(node, f"stride {strides} with padding {pads} (both must be equal in all directions)")
    if any(d != 1 for d in attributes.get("dilations", ())):
        _refuse(node, "dilation")
    if attributes.get("ceil_mode", 0):
        _refuse(node, "ceil_mode")
    return (kernel[0], kernel[1]), strides[0], pads[0]


def _conv(context: _Context, node: NodeProto) -> None:
    kernel, stride, pad = _window(node)
    _sparse(
        context,
        "SparseConv",
        node,
        out_channels=context.shapes[node.output[0]][0],
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride=stride,
        pad=pad,
        in_halo=context.halos[node.input[0]],
        out_halo=context.halos[node.output[0]],
        group=int(_attributes(node).get("group", 1)),
    )


def _gemm(context: _Context, node: NodeProto) -> None:
    attributes = _attributes(node)
    if (
        attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
        or not attributes.get("transB", 0)
    ):
        _refuse(node, "a Gemm that is not torch's Linear")
    _sparse(context, "SparseGemm", node, out_features=context.shapes[node.output[0]][0])


def _sparse(context: _Context, op_type: str, node: NodeProto, **attributes: int) -> None:
    """A layer with a prunable weight; with a bias it is an op of its own."""
    values, bias = context.weight(node, 1, PRUNABLE), context.weight(node, 2, DENSE)
    inputs = [_blocked(node.input[0]), values, *([bias] if bias else []), f"{values}.indices"]
    name = f"{op_type}Bias" if bias else op_type
    context.emit(name, node, inputs, [_blocked(node.output[0])], **attributes)


def _batch_norm(context: _Context, node: NodeProto) -> None:
    attributes = _attributes(node)
    affine = [context.weight(node, position, DENSE) for position in (1, 2)]
    statistics = [context.weight(node, position, STATISTIC) for position in (3, 4)]
    output = node.output[0]
    _, height, width = context.shapes[output]
    for name in statistics:
        context.momentum[name] = 1.0 - attributes.get("momentum", 0.9)
    context.emit(
        "BatchNorm",
        node,
        [_blocked(node.input[0]), *affine, *statistics, "count"],
        [_blocked(output), *(name + ".batch" for name in statistics), output + "/invstd"],
        epsilon=float(attributes.get("epsilon", 1e-5)),
        training=1,
        in_halo=context.halos[node.input[0]],
        out_halo=context.halos[output],
        in_height=height,
        in_width=width,
    )


def _elementwise(context: _Context, node: NodeProto) -> None:
    source_shapes = {context.shapes.get(name) for name in node.input}
    if source_shapes != {context.shapes[node.output[0]]}:
        _refuse(node, "broadcasting, or a constant operand,")
    context.emit(node.op_type, node, [_blocked(name) for name in node.input], [_blocked(node.output[0])])


def _pool(context: _Context, node: NodeProto) -> None:
    kernel, stride, pad = _window(node)
    _, height, width = context.shapes[node.input[0]]
    outputs = [_blocked(node.output[0])]
    extra: dict[str, int] = {}
    if node.op_type == "MaxPool":
        outputs.append(node.output[0] + "/argmax")
    else:
        extra["count_include_pad"] = int(_attributes(node).get("count_include_pad", 0))
    context.emit(
        node.op_type,
        node,
        [_blocked(node.input[0])],
        outputs,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride=stride,
        pad=pad,
        in_halo=context.halos[node.input[0]],
        out_halo=context.halos[node.output[0]],
        in_height=height,
        in_width=width,
        **extra,
    )


def _collapse(context: _Context, node: NodeProto) -> None:
    """GlobalAveragePool and Flatten: whole maps at once."""
    channels, height, width = context.shapes[node.input[0]]
    extra: dict[str, int] = {}
    if node.op_type == "Flatten":
        if _attributes(node).get("axis", 1) != 1:
            _refuse(node, "an axis other than 1")
        extra["channels"] = channels
    context.emit(
        node.op_type,
        node,
        [_blocked(node.input[0])],
        [_blocked(node.output[0])],
        in_halo=context.halos[node.input[0]],
        in_height=height,
        in_width=width,
        **extra,
    )


CONVERTERS: dict[str, Callable[[_Context, NodeProto], None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "Relu": _elementwise,
    "Add": _elementwise,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _collapse,
    "Flatten": _collapse,
}


def _model(graph: onnx.GraphProto, context: _Context, layout: Layout) -> onnx.ModelProto:
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
