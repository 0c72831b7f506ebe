"""What a traced graph computes of shapes alone becomes constants, and every activation gets its shape.

Torch's exporter writes x.view(x.size(0), -1) as a chain of Shape, Gather, Unsqueeze and Concat. None of
that is arithmetic on activations. So the graph is run once with a batch of two and once with three:
what depends on shapes only and is equal in both is a constant; what grows with the batch is written
anew from the batch size of the graph's input. Shapes found by running need no inference rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

from export.composites import DOMAIN
from protocol.errors import ArtifactError

Array = npt.NDArray[Any]
BATCHES = (2, 3)
BATCH = "N"


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph without computed shapes, with the shape of every tensor as value_info.

    The batch size is the dimension "N"; multiples of it are "2*N", and so on.

    Raises:
        ArtifactError: the module computes another graph for another batch size.
    """
    runs = [_run(model, batch) for batch in BATCHES]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    derived = _derived(graph)
    first = graph.input[0].name
    replaced: dict[str, list[NodeProto]] = {}
    for name in derived:
        values = [run[name] for run in runs]
        if np.array_equal(values[0], values[1]):
            replaced[name] = [constant(name, values[0])]
        elif values[0].dtype == np.int64 and values[0].ndim < 2:
            replaced[name] = _of_batch(name, first, values[0], values[1])
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] not in replaced:
            nodes += [*_inferred_size(node, runs), node]
        else:
            nodes += replaced.pop(node.output[0])
    _keep(graph, nodes)
    infos = {info.name: info for info in _annotations(graph, runs)}
    for output in graph.output:
        output.CopyFrom(infos.pop(output.name))
    del graph.value_info[:]
    graph.value_info.extend(infos.values())
    return made


def _run(model: onnx.ModelProto, batch: int) -> dict[str, Array]:
    """Every tensor of the graph for one batch size; our own operators are stood in for by their shape."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    graph = observed.graph
    del graph.node[:]
    for node in model.graph.node:
        graph.node.extend(_stand_in(node))
    names = [name for node in model.graph.node for name in node.output if name]
    known = {output.name for output in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal([batch, *shape]).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(
            observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, {graph.input[0].name: x})
    except Exception as error:  # onnxruntime raises its own kinds, without a common base.
        raise ArtifactError(
            f"the traced graph does not run with a batch of {batch}: {error}. A module must not use the batch "
            "size as a Python number: write x.flatten(1), or x.view(x.size(0), -1)"
        ) from error
    found = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
    return {graph.input[0].name: x, **found}


def _stand_in(node: NodeProto) -> list[NodeProto]:
    if node.domain != DOMAIN:
        return [node]
    if node.op_type != "Attention":
        return [helper.make_node("Identity", node.input[:1], node.output)]
    parts = [node.output[0], *(f"{node.output[0]}/stand-in {i}" for i in (1, 2))]
    return [helper.make_node("Split", node.input[:1], parts, axis=2)]


def _derived(graph: onnx.GraphProto) -> list[str]:
    """Tensors that depend on constants and on shapes, but on no activation and no weight."""
    derived: dict[str, None] = {}
    for node in graph.node:
        from_shapes = node.op_type in ("Shape", "Constant") or all(name in derived for name in node.input)
        if from_shapes and node.domain == "":
            derived.update(dict.fromkeys(node.output))
    return list(derived)


def _of_batch(name: str, source: str, two: Array, three: Array) -> list[NodeProto]:
    """Nodes that compute the integers `name` = constant + slope * N from the batch size N of `source`."""
    slope = three - two
    return [
        constant(f"{name}/slope", slope),
        constant(f"{name}/rest", two - BATCHES[0] * slope),
        constant(f"{name}/first", np.zeros((), np.int64)),
        helper.make_node("Shape", [source], [f"{name}/shape"], f"{name}/shape"),
        helper.make_node("Gather", [f"{name}/shape", f"{name}/first"], [f"{name}/batch"], f"{name}/batch"),
        helper.make_node("Mul", [f"{name}/slope", f"{name}/batch"], [f"{name}/scaled"], f"{name}/scaled"),
        helper.make_node("Add", [f"{name}/scaled", f"{name}/rest"], [name], f"{name}/sum"),
    ]


def constant(name: str, value: Array) -> NodeProto:
    """A Constant node: initializers are the module's weights, and nothing else."""
    return helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(np.asarray(value)))


def _inferred_size(node: NodeProto, runs: list[dict[str, Array]]) -> list[NodeProto]:
    """Let a Reshape infer the one size that depends on the batch: its target is then a constant."""
    if node.op_type != "Reshape":
        return []
    sizes = [list(run[node.output[0]].shape) for run in runs]
    varying = [axis for axis, (two, three) in enumerate(zip(*sizes, strict=True)) if two != three]
    if len(varying) != 1:
        return []
    target = np.array(sizes[0], np.int64)
    target[varying[0]] = -1
    node.input[1] = node.output[0] + "/target"
    return [constant(node.input[1], target)]


def _keep(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    """Leave the nodes and weights that the output needs."""
    needed = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _annotations(graph: onnx.GraphProto, runs: list[dict[str, Array]]) -> list[onnx.ValueInfoProto]:
    infos = []
    for name in [name for node in graph.node for name in node.output if name in runs[0]]:
        two, three = (run[name] for run in runs)
        dims = [_dim(a, b) for a, b in zip(two.shape, three.shape, strict=True)]
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(two.dtype), dims))
    return infos


def _dim(two: int, three: int) -> int | str:
    if two == three:
        return two
    slope = three - two
    return BATCH if slope == 1 else f"{slope}*{BATCH}"
