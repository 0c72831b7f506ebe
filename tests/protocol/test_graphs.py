"""What a device runs, and what it refuses: each graph made with the onnx package, which a device does not have."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from protocol.errors import ArtifactError
from protocol.graphs import check_graph

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])


def model(*nodes: onnx.NodeProto, **more: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [X], [Y], **more)  # type: ignore[arg-type]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def node(operator: str = "Relu", domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)


def branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [Y])


def with_if() -> onnx.ModelProto:
    return model(node("If", then_branch=branch(), else_branch=branch()))


def with_a_hidden_graph() -> onnx.ModelProto:
    """A subgraph in an operator that is listed."""
    return model(node("Relu", body=branch()))


def with_a_list_of_graphs() -> onnx.ModelProto:
    return model(node("Relu", bodies=[branch()]))


def with_external_data(location: str = "../../etc/passwd") -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model(node(), initializer=[tensor])


def with_external_data_in_a_constant() -> onnx.ModelProto:
    tensor = with_external_data().graph.initializer[0]
    return model(helper.make_node("Constant", [], ["y"], value=tensor))


def with_external_data_unmarked() -> onnx.ModelProto:
    """The location without the flag."""
    made = with_external_data()
    made.graph.initializer[0].ClearField("data_location")
    return made


def with_a_function() -> onnx.ModelProto:
    made = model(node("F", "f"))
    opset = helper.make_opsetid("", 17)
    made.functions.append(helper.make_function("f", "F", ["x"], ["y"], [node()], [opset]))
    return made


def with_a_training_graph() -> onnx.ModelProto:
    made = model(node())
    made.training_info.add().algorithm.CopyFrom(branch())
    return made


def with_two_graphs() -> bytes:
    """Protobuf merges them; which one would a runtime take?"""
    return model(node()).SerializeToString() + with_if().SerializeToString()


BAD: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "If": (with_if, "control flow|'If'"),
    "Loop": (lambda: model(node("Loop", body=branch())), "control flow|'Loop'"),
    "Scan": (lambda: model(node("Scan", body=branch())), "control flow|'Scan'"),
    "a loop without its body": (lambda: model(node("Loop")), "'Loop'"),
    "a hidden graph": (with_a_hidden_graph, "control flow"),
    "a list of graphs": (with_a_list_of_graphs, "control flow"),
    "external data": (with_external_data, "external data"),
    "external data in a constant": (with_external_data_in_a_constant, "external data"),
    "external data unmarked": (with_external_data_unmarked, "external data"),
    "a foreign domain": (lambda: model(node("Relu", "evil.example")), "of the domain 'evil.example'"),
    "another of Microsoft's": (lambda: model(node("PyOp", "com.microsoft")), "'PyOp' of the domain"),
    "randomness": (lambda: model(node("RandomNormal")), "'RandomNormal'"),
    "a string operator": (lambda: model(node("RegexFullMatch")), "'RegexFullMatch'"),
    "a function": (with_a_function, "functions|of the domain 'f'"),
    "a training graph": (with_a_training_graph, "training graphs"),
    "two graphs": (with_two_graphs, "2 graphs|control flow"),
    "nothing": (lambda: b"", "0 graphs"),
    "text": (lambda: b"{}", "refused"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_more_than_arithmetic_is_refused(case, fault):
    row = fault(28)
    made = BAD[case][0]()
    raw = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(ArtifactError, match=BAD[case][1]) as info:
        check_graph("step.onnx", raw)
    assert str(info.value).startswith("step.onnx is refused: ")
    row.trials = 1


def test_what_is_listed_is_not():
    nodes = (node(), node("FusedMatMul", "com.microsoft"), node("SparseConv", "sparsefleet"))
    check_graph("x", model(*nodes).SerializeToString())


def test_the_reader_agrees_with_protobuf_on_damaged_models():
    """Whatever onnx can still parse, and has a bad node in, is refused; and nothing else is ever raised."""
    rng, whole = random.Random(0), with_if().SerializeToString()
    for _ in range(5000):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        raw = raw[: rng.randint(0, len(raw))] if rng.random() < 0.3 else raw
        try:
            check_graph("x", bytes(raw))
        except ArtifactError:
            continue
        try:
            parsed = onnx.ModelProto.FromString(bytes(raw))
        except DecodeError:  # Then a runtime cannot read it either.
            continue
        assert all(one.op_type == "Relu" and not one.attribute for one in parsed.graph.node)


def test_an_endless_graph_is_refused():
    big = onnx.ModelProto()
    big.graph.node.extend([node()] * 100_000)
    check_graph("x", big.SerializeToString())
    big.graph.node.append(node())
    with pytest.raises(ArtifactError, match="more than 100000 nodes"):
        check_graph("x", big.SerializeToString())
