"""Converters of what transformers add: linear layers, norms, GELU and attention on tokens [N, T, D].

Tokens are blocked as maps of D channels and one row of T pixels, so the norms and activation functions
work on images as well.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from export.context import Context, attributes_of, refuse
from protocol.layout import DENSE, PRUNABLE


def sparse(context: Context, op_type: str, node: NodeProto, **attributes: int) -> None:
    """A layer with a prunable weight; with a bias it is an op of its own."""
    values, bias = context.weight(node, 1, PRUNABLE), context.weight(node, 2, DENSE)
    inputs = [context.blocked(node.input[0]), values, *([bias] if bias else []), f"{values}.indices"]
    name = f"{op_type}Bias" if bias else op_type
    context.emit(name, node, inputs, [context.output(node.output[0])], **attributes)


def _linear(context: Context, node: NodeProto) -> None:
    source, target = node.input[0], node.output[0]
    num_outputs = context.shapes[target][0]
    if context.ranks[source] == 2:
        sparse(context, "SparseGemm", node, out_features=num_outputs)
        return
    halos = {"in_halo": context.halos[source], "out_halo": context.halos[target]}
    sparse(
        context,
        "SparseConv",
        node,
        out_channels=num_outputs,
        kernel_h=1,
        kernel_w=1,
        stride=1,
        pad=0,
        **halos,
        group=1,
    )


def _tokens(context: Context, node: NodeProto) -> None:
    source = node.input[0]
    channels, height, width = context.shapes[source]
    context.emit(
        "Flatten",
        node,
        [context.blocked(source)],
        [context.output(node.output[0])],
        in_halo=context.halos[source],
        channels=channels,
        in_height=height,
        in_width=width,
        tokens=1,
    )


def _group_norm(context: Context, node: NodeProto) -> None:
    attributes = attributes_of(node)
    if context.ranks[node.input[0]] == 3:
        refuse(node, "group norm of [N, C, L]")
    _norm(
        context,
        "GroupNorm",
        node,
        groups=int(attributes["groups"]),
        in_halo=context.halos[node.input[0]],
        out_halo=context.halos[node.output[0]],
    )


def _layer_norm(context: Context, node: NodeProto) -> None:
    if attributes_of(node)["axes"] != 1 or context.ranks[node.input[0]] == 4:
        refuse(node, "layer norm over anything but the last axis of [N, F] or [N, T, D]")
    _norm(context, "LayerNorm", node)


def _norm(context: Context, op_type: str, node: NodeProto, **attributes: int) -> None:
    if len(node.input) != 3:
        refuse(node, "a norm without both scale and bias")
    affine = [context.weight(node, position, DENSE) for position in (1, 2)]
    output = node.output[0]
    context.emit(
        op_type,
        node,
        [context.blocked(node.input[0]), *affine],
        [context.output(output), output + "/mean", output + "/invstd"],
        epsilon=float(attributes_of(node)["epsilon"]),
        **attributes,
    )


def _gelu(context: Context, node: NodeProto) -> None:
    _pointwise(context, node, tanh=int(attributes_of(node)["tanh"]))


def _leaky_relu(context: Context, node: NodeProto) -> None:
    alpha = float(attributes_of(node).get("alpha", 0.01))
    if alpha <= 0:
        refuse(node, f"a negative slope of {alpha}; it must be positive, and 0 is ReLU")
    _pointwise(context, node, alpha=alpha)


def _pointwise(context: Context, node: NodeProto, **attributes: float) -> None:
    source, target = context.blocked(node.input[0]), context.output(node.output[0])
    context.emit(node.op_type, node, [source], [target], **attributes)


def _add_weight(context: Context, node: NodeProto) -> None:
    source, target = node.input[0], node.output[0]
    context.emit(
        "AddWeight",
        node,
        [context.blocked(source), context.weight(node, 1, DENSE)],
        [context.output(target)],
        halo=context.halos[source],
        channels_last=int(context.ranks[source] == 3),
    )


def _attention(context: Context, node: NodeProto) -> None:
    heads, features = int(attributes_of(node)["heads"]), context.shapes[node.output[0]][0]
    if features % heads:
        refuse(node, f"{heads} heads for {features} features")
    output = node.output[0]
    context.emit(
        "Attention",
        node,
        [context.blocked(node.input[0])],
        [context.output(output), output + "/probability"],
        heads=heads,
    )


TOKEN_CONVERTERS: dict[str, Callable[[Context, NodeProto], None]] = {
    "Linear": _linear,
    "Tokens": _tokens,
    "GroupNorm": _group_norm,
    "LayerNorm": _layer_norm,
    "Gelu": _gelu,
    "LeakyRelu": _leaky_relu,
    "AddWeight": _add_weight,
    "Attention": _attention,
}
