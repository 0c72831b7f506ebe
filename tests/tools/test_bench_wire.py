"""Our reader and writer of ONNX's format, against the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from protocol.errors import ArtifactError
from tools.bench import graphs, wire


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_nodes_are_read_as_the_onnx_package_reads_them(model):
    step = graphs.read(model)[1]
    theirs = onnx.load_from_string(step).graph.node
    ours = wire.nodes(step)
    assert len(ours) == len(theirs)
    for mine, node in zip(ours, theirs, strict=True):
        assert (mine.op_type, mine.name, mine.domain) == (node.op_type, node.name, node.domain)
        assert (list(mine.inputs), list(mine.outputs)) == (list(node.input), list(node.output))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert mine.attributes == pytest.approx(attributes)


def test_a_written_model_is_one_to_the_onnx_package():
    node = wire.Node("Op", ("x", "i"), ("y", ""), {"size": 300, "minus": -1, "epsilon": 1e-5, "none": 0}, "n")
    inputs = [wire.Value("x", wire.FLOAT, 5), wire.Value("i", wire.INT32, 1)]
    model = onnx.load_from_string(wire.model([node], inputs, [wire.Value("y", wire.FLOAT, 2)]))
    (read,) = model.graph.node
    assert {a.name: onnx.helper.get_attribute_value(a) for a in read.attribute} == {
        "size": 300,
        "minus": -1,
        "epsilon": np.float32(1e-5),
        "none": 0,
    }
    assert [len(value.type.tensor_type.shape.dim) for value in model.graph.input] == [5, 1]
    assert model.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT32
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 15), ("sparsefleet", 1)]
    assert wire.nodes(model.SerializeToString()) == [
        wire.Node(node.op_type, node.inputs, node.outputs, pytest.approx(node.attributes), "n")
    ]


def test_outputs_are_added_to_those_that_a_model_has():
    step = graphs.read("cnn")[1]
    before = onnx.load_from_string(step).graph
    after = onnx.load_from_string(wire.with_outputs(step, [wire.Value("inner", wire.FLOAT)])).graph
    assert [o.name for o in after.output] == [*(o.name for o in before.output), "inner"]
    assert len(after.node) == len(before.node)


@pytest.mark.parametrize("keep", [1, 10, 1000])
def test_a_damaged_model_is_refused(keep):
    with pytest.raises(ArtifactError, match="no ONNX model"):
        wire.nodes(graphs.read("cnn")[1][:keep])
