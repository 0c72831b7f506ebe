"""The gradients of the sparsefleet ops, told to ONNX Runtime's gradient builder.

GRADIENTS is read like an equation: GO(i) is the gradient of output i, I(i) and O(i) are inputs and
outputs of the forward node, GI(i) is the gradient of input i. The builder drops what nobody needs
(the input gradient of the first layer), so the kernels' outputs are optional. It finds GI(0) to
GI(2) only, so whatever is trained stands among an op's first three inputs.

The builder cannot copy attributes from the forward node; `copy_attributes` does it afterwards.
"""

from __future__ import annotations

import onnx
from onnxruntime.capi import _pybind_state as ort

from export.graph import DOMAIN
from protocol.errors import ArtifactError

# forward op -> (gradient op, its inputs, its outputs)
GRADIENTS: dict[str, tuple[str, list[str], list[str]]] = {
    "SparseConv": ("SparseConvGrad", ["GO(0)", "I(0)", "I(1)", "I(2)"], ["GI(0)", "GI(1)"]),
    "SparseConvBias": ("SparseConvGrad", ["GO(0)", "I(0)", "I(1)", "I(3)"], ["GI(0)", "GI(1)", "GI(2)"]),
    "SparseGemm": ("SparseGemmGrad", ["GO(0)", "I(0)", "I(1)", "I(2)"], ["GI(0)", "GI(1)"]),
    "SparseGemmBias": ("SparseGemmGrad", ["GO(0)", "I(0)", "I(1)", "I(3)"], ["GI(0)", "GI(1)", "GI(2)"]),
    "BatchNorm": (
        "BatchNormGrad",
        ["GO(0)", "I(0)", "I(1)", "O(1)", "O(3)", "I(5)"],
        ["GI(0)", "GI(1)", "GI(2)"],
    ),
    "Relu": ("ReluGrad", ["GO(0)", "O(0)"], ["GI(0)"]),
    "MaxPool": ("MaxPoolGrad", ["GO(0)", "O(1)"], ["GI(0)"]),
    "AveragePool": ("AveragePoolGrad", ["GO(0)"], ["GI(0)"]),
    "GlobalAveragePool": ("GlobalAveragePoolGrad", ["GO(0)"], ["GI(0)"]),
    "Flatten": ("FlattenGrad", ["GO(0)"], ["GI(0)"]),
    "Unpack": ("UnpackGrad", ["GO(0)"], ["GI(0)"]),
    "Pack": ("PackGrad", ["GO(0)", "O(1)"], ["GI(0)"]),
    "GroupNorm": (
        "GroupNormGrad",
        ["GO(0)", "I(0)", "I(1)", "O(1)", "O(2)"],
        ["GI(0)", "GI(1)", "GI(2)"],
    ),
    "LayerNorm": (
        "LayerNormGrad",
        ["GO(0)", "I(0)", "I(1)", "O(1)", "O(2)"],
        ["GI(0)", "GI(1)", "GI(2)"],
    ),
    "LeakyRelu": ("LeakyReluGrad", ["GO(0)", "O(0)"], ["GI(0)"]),
    "Gelu": ("GeluGrad", ["GO(0)", "I(0)"], ["GI(0)"]),
    "Attention": ("AttentionGrad", ["GO(0)", "I(0)", "O(1)"], ["GI(0)"]),
    "AddWeight": ("AddWeightGrad", ["GO(0)", "I(1)"], ["GI(1)"]),
}

# Inputs through which no gradient flows: indices, counts, running statistics.
STOPPED: dict[str, set[int]] = {
    "SparseConv": {2},
    "SparseConvBias": {3},
    "SparseGemm": {2},
    "SparseGemmBias": {3},
    "BatchNorm": {3, 4, 5},
    "Unpack": {1},
}


def _definition(op_type: str, domain: str, inputs: list[str], outputs: list[str]) -> object:
    definition = ort.GradientNodeDefinition()
    definition.op_type = op_type
    definition.domain = domain
    definition.inputs = inputs
    definition.outputs = outputs
    definition.attributes = []
    return definition


def register() -> None:
    """Tell the gradient builder of this process how our ops are differentiated. May be repeated."""
    to_first, to_second = (_definition("Identity", "", ["GO(0)"], [f"GI({i})"]) for i in (0, 1))
    for op_type, (gradient, inputs, outputs) in GRADIENTS.items():
        definitions = [_definition(gradient, DOMAIN, inputs, outputs)]
        if op_type == "AddWeight":
            definitions.append(to_first)
        ort.register_gradient_definition(f"{DOMAIN}::{op_type}", definitions)
    ort.register_gradient_definition(f"{DOMAIN}::Add", [to_first, to_second])
    for op_type, edges in STOPPED.items():
        ort.register_custom_stop_gradient_edges(f"{DOMAIN}::{op_type}", edges)


def copy_attributes(model: onnx.ModelProto) -> None:
    """Give each gradient node the attributes of its forward node, which it is named after.

    Raises:
        ArtifactError: a gradient node without a forward node; the builder's naming has changed.
    """
    forward = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type.endswith("Grad") is False:
            continue
        source = forward.get(node.name.rpartition("_Grad/")[0])
        if source is None or GRADIENTS[source.op_type][0] != node.op_type:
            raise ArtifactError(f"no forward node for gradient node {node.name!r} ({node.op_type})")
        node.attribute.extend(source.attribute)
