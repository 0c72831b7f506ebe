"""PyTorch module -> plain ONNX, once in training form and once in evaluation form.

Both keep the parameters' PyTorch names. Nothing is folded: a batch norm that disappears into a
convolution could not be trained.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.composites import pack_attention, whole
from export.simplify import constant, simplify
from protocol.errors import ArtifactError

# Newest opset that the training build's gradient builder knows completely.
OPSET = 15
# Newest IR that onnxruntime 1.19.2, the last training build, reads.
IR_VERSION = 9


def trace(module: nn.Module, input_shape: tuple[int, ...], standard_only: bool = False) -> onnx.ModelProto:
    """Return the module's training graph: input "x" [N, *input_shape], output "logits" [N, classes].

    Initializers are the parameters and the running statistics, and nothing else. Some operators stay whole
    (export/composites.py), unless `standard_only`: that is the graph for evaluation.

    Raises:
        ArtifactError: torch cannot export the module, or its output is not [N, classes].
    """
    state = module.state_dict()
    module = copy.deepcopy(module).train()
    if not standard_only:
        pack_attention(module)
    example = torch.randn(2, *input_shape)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), contextlib.nullcontext() if standard_only else whole(OPSET):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]  # Typed as a path, takes a buffer.
                dynamo=False,
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.TRAINING,
                do_constant_folding=False,
                input_names=["x"],
                output_names=["logits"],
                dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
            )
            num_dims = module(example).dim()
    except Exception as error:  # torch raises whatever the module raises; the user must see which.
        raise ArtifactError(f"torch cannot export the module: {error}") from error
    if num_dims != 2:
        raise ArtifactError(
            f"the module must return logits [batch, classes]; it returned {num_dims} dimensions"
        )
    model = onnx.load_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION
    for tensor in model.graph.initializer:
        if tensor.name in state:  # Tracing runs the module, which moves the running statistics.
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    model = _without_identities(model)
    if standard_only:
        return model
    _fix_buffers(model.graph, {name for name, _ in module.named_parameters()})
    return simplify(model)


def _fix_buffers(graph: onnx.GraphProto, trained: set[str]) -> None:
    """Turn what is neither trained nor a running statistic into constants."""
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            trained = trained | set(node.input[3:5])
    fixed = [tensor for tensor in graph.initializer if tensor.name not in trained]
    nodes = [*(constant(tensor.name, numpy_helper.to_array(tensor)) for tensor in fixed), *graph.node]
    kept = [tensor for tensor in graph.initializer if tensor.name in trained]
    for repeated, values in ((graph.node, nodes), (graph.initializer, kept)):
        del repeated[:]
        repeated.extend(values)


def evaluation_form(traced: onnx.ModelProto, parameters: list[str]) -> onnx.ModelProto:
    """Return the graph for evaluation: batch norm uses its statistics; `parameters` become inputs.

    Standard operators only: any onnxruntime runs it, with the weights fed from a flat vector.
    """
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
            kept = [attribute for attribute in node.attribute if attribute.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    kept_initializers = [tensor for tensor in model.graph.initializer if tensor.name not in parameters]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_initializers)
    for name in parameters:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]))
    del model.graph.value_info[:]
    return model


def _without_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove Identity nodes, which torch writes for nn.Identity and for shared initializers, and Dropout of 0."""
    renamed: dict[str, str] = {}
    zeros = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Constant" and not numpy_helper.to_array(node.attribute[0].t).any()
    }
    nodes = []
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        is_identity = node.op_type == "Identity" or (node.op_type == "Dropout" and node.input[1] in zeros)
        if is_identity and node.output[0] not in {o.name for o in model.graph.output}:
            renamed[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
