"""What each operator of a traced graph becomes: one function for each, in CONVERTERS.

Operators on tokens are in export/token_converters.py, which this table includes.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from export.context import Context, attributes_of, refuse
from export.token_converters import TOKEN_CONVERTERS, sparse
from protocol.layout import DENSE, STATISTIC


def window(node: NodeProto) -> tuple[tuple[int, int], int, int]:
    """Kernel, stride and padding of a convolution or pool; what has no sparsefleet form is refused."""
    attributes = attributes_of(node)
    kernel = tuple(attributes["kernel_shape"])
    strides = tuple(attributes.get("strides", (1,) * len(kernel)))
    pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel)))
    if len(kernel) != 2:
        refuse(node, f"a {len(kernel)}-dimensional kernel")
    if len(set(strides)) != 1 or len(set(pads)) != 1:
        refuse(node, f"stride {strides} with padding {pads} (both must be equal in all directions)")
    if any(d != 1 for d in attributes.get("dilations", ())):
        refuse(node, "dilation")
    if attributes.get("ceil_mode", 0):
        refuse(node, "ceil_mode")
    return (kernel[0], kernel[1]), strides[0], pads[0]


def _conv(context: Context, node: NodeProto) -> None:
    kernel, stride, pad = window(node)
    sparse(
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
        group=int(attributes_of(node).get("group", 1)),
    )


def _gemm(context: Context, node: NodeProto) -> None:
    attributes = attributes_of(node)
    if (
        attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
        or not attributes.get("transB", 0)
    ):
        refuse(node, "a Gemm that is not torch's Linear")
    sparse(context, "SparseGemm", node, out_features=context.shapes[node.output[0]][0])


def _batch_norm(context: Context, node: NodeProto) -> None:
    attributes = attributes_of(node)
    affine = [context.weight(node, position, DENSE) for position in (1, 2)]
    statistics = [context.weight(node, position, STATISTIC) for position in (3, 4)]
    output = node.output[0]
    _, height, width = context.shapes[output]
    for name in statistics:
        context.momentum[name] = 1.0 - attributes.get("momentum", 0.9)
    context.emit(
        "BatchNorm",
        node,
        [context.blocked(node.input[0]), *affine, *statistics, "count"],
        [context.output(output), *(name + ".batch" for name in statistics), output + "/invstd"],
        epsilon=float(attributes.get("epsilon", 1e-5)),
        training=1,
        in_halo=context.halos[node.input[0]],
        out_halo=context.halos[output],
        in_height=height,
        in_width=width,
    )


def _elementwise(context: Context, node: NodeProto) -> None:
    sources = [context.blocked(name) for name in node.input]
    context.emit(node.op_type, node, sources, [context.output(node.output[0])])


def _pool(context: Context, node: NodeProto) -> None:
    kernel, stride, pad = window(node)
    _, height, width = context.shapes[node.input[0]]
    outputs = [context.output(node.output[0])]
    extra: dict[str, int] = {}
    if node.op_type == "MaxPool":
        outputs.append(node.output[0] + "/argmax")
    else:
        extra["count_include_pad"] = int(attributes_of(node).get("count_include_pad", 0))
    context.emit(
        node.op_type,
        node,
        [context.blocked(node.input[0])],
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


def _collapse(context: Context, node: NodeProto) -> None:
    """GlobalAveragePool and Flatten: whole maps at once."""
    channels, height, width = context.shapes[node.input[0]]
    extra: dict[str, int] = {}
    if node.op_type == "Flatten":
        if attributes_of(node).get("axis", 1) != 1:
            refuse(node, "an axis other than 1")
        extra["channels"] = channels
    context.emit(
        node.op_type,
        node,
        [context.blocked(node.input[0])],
        [context.output(node.output[0])],
        in_halo=context.halos[node.input[0]],
        in_height=height,
        in_width=width,
        **extra,
    )


CONVERTERS: dict[str, Callable[[Context, NodeProto], None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "Relu": _elementwise,
    "Add": _elementwise,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _collapse,
    "Flatten": _collapse,
    **TOKEN_CONVERTERS,
}

# Their channels stand second: [N, C, L] is no row of tokens to them.
CHANNELS_FIRST = ("Conv", "BatchNormalization", "MaxPool", "AveragePool", "Flatten")


def is_convertible(context: Context, node: NodeProto) -> bool:
    """Whether `node` can become an op of ours; a setting that has none is refused by its converter."""
    if node.op_type not in CONVERTERS:
        return False
    names = [node.input[0], *(node.input[1:] if node.op_type == "Add" else ()), node.output[0]]
    if not all(name in context.shapes for name in names):
        return False
    if node.op_type == "Add" and len({(context.shapes[name], context.ranks[name]) for name in names}) != 1:
        return False
    return context.ranks[node.input[0]] != 3 or node.op_type not in CHANNELS_FIRST
