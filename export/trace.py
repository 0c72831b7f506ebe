"""PyTorch module -> plain ONNX, once in training form and once in evaluation form.

Both keep the parameters' PyTorch names. Nothing is folded: a batch norm that disappears into a
convolution could not be trained.
"""

from __future__ import annotations

import copy
import io
import warnings

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import nn

from protocol.errors import ArtifactError

# Newest opset that the training build's gradient builder knows completely.
OPSET = 15
# Newest IR that onnxruntime 1.19.2, the last training build, reads.
IR_VERSION = 9


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return the module's training graph: input "x" [N, *input_shape], output "logits" [N, classes].

    Raises:
        ArtifactError: torch cannot export the module, or its output is not [N, classes].
    """
    state = module.state_dict()
    module = copy.deepcopy(module).train()
    example = torch.randn(2, *input_shape)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
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
    return shape_inference.infer_shapes(_without_identities(model))


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
    """Remove Identity nodes: torch writes them for nn.Identity and for shared initializers."""
    renamed: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in {o.name for o in model.graph.output}:
            renamed[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
