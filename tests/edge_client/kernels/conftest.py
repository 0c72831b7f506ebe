"""Drive one op through ONNX Runtime itself: a model of one node, run as a device would run it."""

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_client.kernels import library_path, reference

Array = NDArray[Any]

# The outputs of each op: enough of its schema to build a node.
OUTPUTS = {
    "Pack": ["y", "count"],
    "MaxPool": ["y", "argmax"],
    "BatchNorm": ["y", "mean", "var", "invstd"],
    "BatchNormRelu": ["y", "mean", "var", "invstd"],
    "BatchNormAddRelu": ["y", "mean", "var", "invstd"],
    "BatchNormReluMaxPool": ["y", "mean", "var", "invstd"],
    "SparseConvGrad": ["dx", "dvalues", "dbias"],
    "SparseGemmGrad": ["dx", "dvalues", "dbias"],
    "BatchNormGrad": ["dx", "dscale", "dbias"],
    "BatchNormReluGrad": ["dx", "dscale", "dbias"],
    "BatchNormReluSumGrad": ["dx", "dscale", "dbias"],
    "BatchNormReluMaxPoolGrad": ["dx", "dscale", "dbias"],
    "BatchNormAddReluGrad": ["dx", "dscale", "dbias", "dskip"],
    "BatchNormAddReluSumGrad": ["dx", "dscale", "dbias", "dskip"],
    "GroupNorm": ["y", "mean", "invstd"],
    "GroupNormGrad": ["dx", "dscale", "dbias"],
    "LayerNorm": ["y", "mean", "invstd"],
    "LayerNormGrad": ["dx", "dscale", "dbias"],
    "Attention": ["y", "probability"],
    "SoftmaxCrossEntropy": ["loss", "log_prob"],
    "SaveActivation": ["bits", "begin", "values", "used"],
    "SaveActivationHalf": ["bits", "begin", "values", "used"],
    "PruneActivation": ["y", "used"],
    "SaveSigns": ["bits"],
    "SaveHalf": ["halves"],
}
ELEMENT_TYPES = {
    ("Pack", "count"): TensorProto.INT64,
    ("MaxPool", "argmax"): TensorProto.UINT8,
    ("SaveActivation", "bits"): TensorProto.UINT16,
    ("SaveActivation", "begin"): TensorProto.INT64,
    ("SaveActivationHalf", "bits"): TensorProto.UINT16,
    ("SaveActivationHalf", "begin"): TensorProto.INT64,
    ("SaveActivationHalf", "values"): TensorProto.UINT16,
    ("SaveSigns", "bits"): TensorProto.UINT16,
    ("SaveHalf", "halves"): TensorProto.UINT16,
}


class Node:
    """One op with fixed attributes, as a session.

    `wanted` leaves out optional outputs. SparseConv and SparseGemm take (x, values, bias or None, indices).
    """

    def __init__(
        self,
        op_type: str,
        inputs: Sequence[Array | None],
        *,
        wanted: Sequence[str] | None = None,
        threads: int = 1,
        **attributes: float,
    ) -> None:
        names = OUTPUTS.get(op_type, ["y"])
        self.wanted = list(names if wanted is None else wanted)
        self.inputs = ["" if array is None else f"input_{i}" for i, array in enumerate(inputs)]
        if op_type in ("SparseConv", "SparseGemm") and inputs[2] is not None:
            op_type += "Bias"  # The reference has one function for both, with the bias or None.
        node = helper.make_node(
            op_type,
            [name for name in self.inputs if name],
            [name if name in self.wanted else "" for name in names],
            domain="sparsefleet",
            **attributes,
        )
        graph = helper.make_graph(
            [node],
            "one_node",
            # Ranks are declared, sizes are not: one session takes tensors of several shapes.
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
                )
                for name, array in zip(self.inputs, inputs, strict=True)
                if array is not None
            ],
            [
                helper.make_tensor_value_info(
                    name, ELEMENT_TYPES.get((op_type, name), TensorProto.FLOAT), None
                )
                for name in self.wanted
            ],
        )
        opsets = [helper.make_opsetid("", 15), helper.make_opsetid("sparsefleet", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        self.session = ort.InferenceSession(
            model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Array | None) -> list[Array]:
        feeds = {name: array for name, array in zip(self.inputs, inputs, strict=True) if name}
        return list(self.session.run(self.wanted, feeds))


def session_options(threads: int) -> ort.SessionOptions:
    """Options with our library; without spinning, which starves the neighbours of a small machine."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # tests of error paths would fill the log
    return options


MakeNode = Callable[..., Node]
RunOp = Callable[..., list[Array]]


@pytest.fixture
def make_node() -> MakeNode:
    return Node


@pytest.fixture
def run_op() -> RunOp:
    """Build a session, run it once, return the outputs in the order of the schema."""

    def run(op_type: str, *inputs: Array | None, **options: Any) -> list[Array]:
        return Node(op_type, inputs, **options)(*inputs)

    return run


@pytest.fixture
def import_torch() -> Callable[[], ModuleType]:
    """The independent truth, where it is installed; a board's environment has none.

    Called at the end of a test, so that what needs no torch has been checked before it skips.
    """

    def load() -> ModuleType:
        if "SPARSEFLEET_TEST_WITHOUT_TORCH" in os.environ:
            pytest.skip("compared with torch in the parent process")
        module: ModuleType = pytest.importorskip("torch")
        return module

    return load


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def assert_halo_is_zero() -> Callable[[Array, int], None]:
    def check(x: Array, halo: int) -> None:
        frame = x.copy()
        reference.inner(frame, halo)[...] = 0
        np.testing.assert_array_equal(frame, 0)

    return check
