"""The training graph -> one that a stock onnxruntime runs with our op library.

What the training build adds and a stock build lacks is replaced or removed:

    SoftmaxCrossEntropyLoss, SoftmaxCrossEntropyLossGrad   -> our ops of the same meaning
    InPlaceAccumulatorV2(buffer, gradient, reset)          -> the gradient becomes a graph output
    target, the labels of a mean squared error             -> labels
    gradient buffers, lazy_reset_grad                      -> gone: the caller owns the outputs
    gradients of operators that stayed standard            -> standard operators (standard_gradients.py)

The names of the result are the interface of edge_client/runtime.py:

    in   x, labels, temperature, <weight> for each piece, <weight>.indices for each prunable one
    out  loss, <weight>.gradient for each trained piece, <statistic>.batch for each statistic
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from export.graph import DOMAIN
from export.standard_gradients import LOWERED, Forward, Sizes
from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, STATISTIC, Layout

MICROSOFT = "com.microsoft"
# What a stock build has of that domain and the gradient builder writes.
CONTRIBUTED = {"FusedMatMul"}


def lower(training: onnx.ModelProto, layout: Layout, sizes: Sizes | None = None) -> onnx.ModelProto:
    """Return the portable step graph. `sizes` are the dimensions of the plain tensors of the forward graph.

    Raises:
        ArtifactError: a node remains that a stock build cannot run; it is named.
    """
    source, training = training, onnx.ModelProto()
    training.CopyFrom(source)
    forward = Forward(training.graph, sizes or {})
    nodes: list[onnx.NodeProto] = []
    gradients: dict[str, str] = {}
    for node in training.graph.node:
        if node.op_type == "InPlaceAccumulatorV2":
            gradients[_parameter(node.input[0])] = node.input[1]
        elif node.op_type == "SoftmaxCrossEntropyLoss":
            nodes.append(_renamed(node, "SoftmaxCrossEntropy", 2))
        elif node.op_type == "SoftmaxCrossEntropyLossGrad":
            nodes.append(_renamed(node, "SoftmaxCrossEntropyGrad", 3))
        elif node.domain == MICROSOFT and node.op_type in LOWERED:
            nodes += LOWERED[node.op_type](node, forward)
        else:
            nodes.append(node)
    for node in nodes:
        if node.domain not in ("", DOMAIN) and node.op_type not in CONTRIBUTED:
            raise ArtifactError(
                f"{node.domain}::{node.op_type} ({node.name}) runs on the training build only, and has no form "
                "in standard operators; docs/operators.md lists what can stay standard"
            )
    missing = [p.name for p in layout.pieces if p.role != STATISTIC and p.name not in gradients]
    if missing:
        raise ArtifactError(f"no gradient reaches {', '.join(missing)}: is the layer's output used?")
    renamed = {gradient: f"{name}.gradient" for name, gradient in gradients.items()}
    renamed["target"] = "labels"
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    return _model(training, nodes, layout)


def free_nnz(model: onnx.ModelProto, layout: Layout) -> None:
    """Let the stored values of prunable weights have any length, in place: masks change."""
    prunable = {p.name for p in layout.of_role(PRUNABLE)}
    for info in model.graph.input:
        name = _parameter(info.name)  # The weight itself, or the buffer of its gradient.
        if name in prunable:
            del info.type.tensor_type.shape.dim[:]
            info.type.tensor_type.shape.dim.add().dim_param = f"{name}.nnz"
    del model.graph.value_info[:]


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph as "domain::op", sorted."""
    return sorted({f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in model.graph.node})


def _parameter(buffer: str) -> str:
    """Name of the parameter behind an accumulation buffer ("fc.weight_grad.accumulation.buffer")."""
    return buffer.removesuffix("_grad.accumulation.buffer")


def _renamed(node: onnx.NodeProto, op_type: str, num_inputs: int) -> onnx.NodeProto:
    """Our op in place of a training op; class weights and ignore_index were never set."""
    made = helper.make_node(op_type, node.input[:num_inputs], list(node.output), node.name, domain=DOMAIN)
    return made


def _model(training: onnx.ModelProto, nodes: list[onnx.NodeProto], layout: Layout) -> onnx.ModelProto:
    inputs = [
        info
        for info in training.graph.input
        if not info.name.endswith(".accumulation.buffer") and info.name != "lazy_reset_grad"
    ]
    for info in inputs:
        info.name = "labels" if info.name == "target" else info.name
    outputs = [helper.make_tensor_value_info(training.graph.output[0].name, TensorProto.FLOAT, [])]
    for piece in layout.pieces:
        shape = [f"{piece.name}.nnz"] if piece.role == PRUNABLE else list(piece.shape)
        suffix = "batch" if piece.role == STATISTIC else "gradient"
        outputs.append(helper.make_tensor_value_info(f"{piece.name}.{suffix}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "step", inputs, outputs, list(training.graph.initializer))
    used = {node.domain for node in nodes}
    opsets = [opset for opset in training.opset_import if opset.domain in used]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=training.ir_version, producer_name="sparsefleet"
    )
    free_nnz(model, layout)
    for node in model.graph.node:
        if node.output[0] == training.graph.output[0].name:
            node.output[0] = "loss"
    model.graph.output[0].name = "loss"
    return model
