"""The shared library: instruction sets, registration, shape inference."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_client.kernels import library_path

HERE = Path(__file__).parent
IS_X86 = platform.machine() in ("x86_64", "AMD64")
SLOWER = ["avx2", "baseline"] if IS_X86 else []  # than what this process has chosen itself


def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library_path()))
    loaded.sparsefleet_isa.restype = ctypes.c_char_p
    loaded.sparsefleet_ops_version.restype = ctypes.c_char_p
    return loaded


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


def test_the_library_says_what_it_is():
    assert library().sparsefleet_ops_version() == b"0.1.0"
    assert library().sparsefleet_isa().decode() in ("avx512", "avx2", "baseline", "neon")


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or not IS_X86, reason="reads the CPU flags of Linux on x86"
)
@pytest.mark.skipif("SPARSEFLEET_ISA" in os.environ, reason="an instruction set is forced from outside")
def test_the_fastest_instruction_set_is_chosen():
    flags = cpu_flags()
    expected = "baseline"
    if {"avx2", "fma"} <= flags:
        expected = "avx2"
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw", "fma"} <= flags:
        expected = "avx512"
    assert library().sparsefleet_isa().decode() == expected


@pytest.mark.slow
@pytest.mark.parametrize("isa", SLOWER)
@pytest.mark.skipif("SPARSEFLEET_ISA" in os.environ, reason="this is the child of such a run")
def test_slower_instruction_sets_agree_with_the_reference_too(isa):
    """The other files of this folder, in a process with that instruction set forced."""
    if isa == "avx2" and not {"avx2", "fma"} <= cpu_flags():
        pytest.skip("this machine has no AVX2")
    files = [str(path) for path in sorted(HERE.glob("test_kernels_*.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    # torch has had its say in this process; importing it again would take longer than the tests.
    environment = {**os.environ, "SPARSEFLEET_ISA": isa, "SPARSEFLEET_TEST_WITHOUT_TORCH": "1"}
    child = subprocess.run(
        command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert "passed" in child.stdout


@pytest.mark.skipif("SPARSEFLEET_ISA" not in os.environ, reason="only when an instruction set is forced")
def test_the_forced_instruction_set_is_the_one_that_runs():
    assert library().sparsefleet_isa().decode() == os.environ["SPARSEFLEET_ISA"]


def test_an_instruction_set_that_is_not_available_is_an_error_at_load():
    script = (
        "import sys, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "try:\n"
        "    options.register_custom_ops_library(sys.argv[1])\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(library_path())]
    environment = {**os.environ, "SPARSEFLEET_ISA": "avx1024"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "SPARSEFLEET_ISA=avx1024 is not available here; available: " in child.stdout


def test_many_sessions_may_register_the_library(run_op):
    for _ in range(3):
        np.testing.assert_array_equal(run_op("Relu", np.ones((1, 1, 1, 1, 16), np.float32))[0], 1)


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(),
    reason="here programs do not choose between small and large pages",
)
@pytest.mark.parametrize("wanted", ["0", "1"])
def test_large_tensors_are_on_large_pages_unless_they_must_not(wanted):
    script = (
        "import re, numpy as np\n"
        "from tests.edge_client.kernels.conftest import Node\n"
        "x = np.ones((1, 64, 64, 64, 16), np.float32)\n"
        "node = Node('Relu', [x])\n"
        "node(x)\n"  # Whose arena stays.
        "print(re.search(r'AnonHugePages: *([0-9]+)', open('/proc/self/smaps_rollup').read())[1])\n"
    )
    environment = {**os.environ, "SPARSEFLEET_LARGE_PAGES": wanted}
    # NumPy asks for large pages, too, unless told otherwise.
    environment |= {"NUMPY_MADVISE_HUGEPAGE": "0", "SPARSEFLEET_TEST_WITHOUT_TORCH": "1"}
    child = subprocess.run(
        [sys.executable, "-c", script],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert (int(child.stdout) >= 8 * 1024) == (wanted == "1")


def test_bits_do_not_depend_on_the_size_of_l1():
    script = (
        "import sys, numpy as np\n"
        "from tests.edge_client.kernels.conftest import Node\n"
        "rng = np.random.default_rng(0)\n"
        "shape = dict(out_channels=96, kernel_h=3, kernel_w=3, stride=1, pad=1, in_halo=1, out_halo=1)\n"
        "for side in 1, 2, 9, 16, 32:\n"  # Small tiles, small ones at the rim, large ones, channels in turns.
        "    x, dy = (rng.standard_normal((1, 97, side + 1, side + 1, 16), np.float32) for _ in range(2))\n"
        "    indices = np.flatnonzero(rng.random(96 * 96 * 9) < 0.25).astype(np.int32)\n"  # Sparse still.
        "    values = rng.standard_normal(indices.size, np.float32)\n"
        "    inputs = x, values, None, indices\n"
        "    results = Node('SparseConv', inputs, **shape)(*inputs)\n"
        "    inputs = dy, x, values, indices\n"
        "    results = *results, *Node('SparseConvGrad', inputs, **shape)(*inputs)\n"
        "    sys.stdout.buffer.write(b''.join(result.tobytes() for result in results))\n"
    )
    outputs = []
    for l1_bytes in ("8192", "32768", "262144"):
        environment = {**os.environ, "SPARSEFLEET_L1_BYTES": l1_bytes, "SPARSEFLEET_TEST_WITHOUT_TORCH": "1"}
        child = subprocess.run(
            [sys.executable, "-c", script],
            cwd=HERE.parents[2],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        outputs.append(child.stdout)
    assert len(outputs[0]) > 2 * 4 * 96 * 16 * (1 + 4 + 81 + 256 + 1024)
    assert outputs[0] == outputs[1] == outputs[2]


# Shape inference, read off the outputs of a session.


def inferred(op_type, inputs, num_outputs, **attributes):
    """Build a node with the given input shapes; return the shapes that the session reports."""
    element_types = {"count": TensorProto.INT64, "labels": TensorProto.INT64, "indices": TensorProto.INT32}
    element_types["argmax"] = TensorProto.UINT8
    outputs = [f"output_{i}" for i in range(num_outputs)]
    types = [TensorProto.FLOAT] * num_outputs
    if op_type == "Pack":
        types[1] = TensorProto.INT64
    if op_type == "MaxPool":
        types[1] = TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node(op_type, list(inputs), outputs, domain="sparsefleet", **attributes)],
        "one_node",
        [
            helper.make_tensor_value_info(name, element_types.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
            if name
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, types, strict=True)],
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("sparsefleet", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [output.shape for output in session.get_outputs()]


CONV = {"out_channels": 8, "kernel_h": 3, "kernel_w": 5, "stride": 2, "pad": 1, "in_halo": 1, "out_halo": 2}
POOL = {"kernel_h": 3, "kernel_w": 2, "stride": 2, "pad": 1, "in_halo": 1, "out_halo": 2}
POOL |= {"in_height": 9, "in_width": 8}
NORM = {"epsilon": 1e-5, "training": 1, "in_halo": 1, "out_halo": 2, "grad_halo": 3}
MAP = {"in_halo": 1, "in_height": 9, "in_width": 8}
X = ["ceil(batch/16)", 4, 10, 9, 16]  # a 9 x 8 map with halo 1
TOKENS = ["ceil(batch/16)", 6, 1, 64, 16]
VECTOR = ["ceil(batch/16)", 6, 1, 1, 16]
SCALES = {"scale": [3], "bias": [3], "running_mean": [3], "running_var": [3], "count": [1]}
SPARSE = {"values": ["nnz"], "indices": ["nnz"]}
UNKNOWN: list[
    int
] = []  # How the runtime reports a shape that nobody set. Only outputs that every node has are set.


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "expected"),
    [
        ("Pack", {"x": ["batch", 3, 9, 8]}, {"out_halo": 1}, [X, [1]]),
        ("Pack", {"x": [33, 6]}, {"out_halo": 0}, [[3, 6, 1, 1, 16], [1]]),
        ("Unpack", {"x": VECTOR, "count": [1]}, {}, [["batch", 6]]),
        ("Unpack", {"x": ["B", 6, 1, 1, 16], "count": [1]}, {}, [["examples_of_B", 6]]),
        ("Unpack", {"x": [2, 6, 1, 1, 16], "count": [1]}, {}, [["examples_of_2_blocks", 6]]),
        ("UnpackGrad", {"dy": ["batch", 6]}, {}, [VECTOR]),
        # (9 + 2 - 3) / 2 + 1 = 5 rows and (8 + 2 - 5) / 2 + 1 = 3 columns, and a halo of 2
        (
            "SparseConv",
            {"x": X, **SPARSE},
            CONV,
            [["ceil(batch/16)", 9, 7, 5, 16]],
        ),
        (
            "SparseConvGrad",
            {"dy": ["ceil(batch/16)", 9, 7, 5, 16], "x": X, **SPARSE},
            CONV,
            [X, UNKNOWN, UNKNOWN],
        ),
        (
            "SparseGemmBias",
            {"x": VECTOR, "values": ["nnz"], "bias": [5], "indices": ["nnz"]},
            {"out_features": 5},
            [["ceil(batch/16)", 5, 1, 1, 16]],
        ),
        (
            "SparseGemmGrad",
            {"dy": ["ceil(batch/16)", 5, 1, 1, 16], "x": VECTOR, **SPARSE},
            {"out_features": 5},
            [VECTOR, UNKNOWN, UNKNOWN],
        ),
        ("BatchNorm", {"x": X, **SCALES}, NORM, [["ceil(batch/16)", 4, 11, 10, 16], *[UNKNOWN] * 3]),
        (
            "BatchNormGrad",
            {"dy": ["b", 4, 11, 10, 16], "x": X, "scale": [3], "mean": [3], "invstd": [3], "count": [1]},
            NORM,
            [["ceil(batch/16)", 4, 12, 11, 16], UNKNOWN, UNKNOWN],
        ),
        (
            "BatchNormReluMaxPool",
            {"x": ["ceil(batch/16)", 4, 9, 7, 16], **SCALES},  # an 8 x 6 map
            NORM,
            [["ceil(batch/16)", 4, 6, 5, 16], *[UNKNOWN] * 3],
        ),
        (
            "BatchNormReluMaxPoolGrad",
            {
                "dy": ["b", 4, 6, 5, 16],
                "x": X,
                "scale": [3],
                "mean": [3],
                "invstd": [3],
                "count": [1],
                "bias": [3],
            },
            NORM,
            [["ceil(batch/16)", 4, 12, 11, 16], UNKNOWN, UNKNOWN],
        ),
        ("Relu", {"x": X}, {}, [X]),
        ("ReluGrad", {"dy": X, "y": X}, {}, [X]),
        ("Add", {"a": X, "b": X}, {}, [X]),
        # (9 + 2 - 3) / 2 + 1 = 5 and (8 + 2 - 2) / 2 + 1 = 5
        ("MaxPool", {"x": X}, POOL, [["ceil(batch/16)", 4, 7, 7, 16], ["ceil(batch/16)", 3, 5, 5, 16]]),
        ("MaxPoolGrad", {"dy": ["B", 4, 7, 7, 16], "argmax": ["B", 3, 5, 5, 16]}, POOL, [["B", *X[1:]]]),
        ("AveragePool", {"x": X}, {**POOL, "count_include_pad": 1}, [["ceil(batch/16)", 4, 7, 7, 16]]),
        ("AveragePoolGrad", {"dy": ["B", 4, 7, 7, 16]}, {**POOL, "count_include_pad": 1}, [["B", *X[1:]]]),
        ("GlobalAveragePool", {"x": X}, MAP, [["ceil(batch/16)", 3, 1, 1, 16]]),
        ("GlobalAveragePoolGrad", {"dy": ["B", 3, 1, 1, 16]}, MAP, [["B", *X[1:]]]),
        ("Flatten", {"x": X}, {**MAP, "channels": 3}, [["ceil(batch/16)", 216, 1, 1, 16]]),
        ("FlattenGrad", {"dy": ["B", 216, 1, 1, 16]}, {**MAP, "channels": 3}, [["B", *X[1:]]]),
        ("Pack", {"x": ["batch", 64, 6]}, {"out_halo": 0}, [TOKENS, [1]]),
        ("Pack", {"x": ["batch", 3, 9, 8]}, {"out_halo": 1, "rank": 4}, [X, [1]]),
        ("PackGrad", {"dy": X, "count": [1]}, {"out_halo": 1, "rank": 4}, [["batch", 3, 9, 8]]),
        ("Unpack", {"x": TOKENS, "count": [1]}, {"in_halo": 0, "rank": 3}, [["batch", 64, 6]]),
        ("UnpackGrad", {"dy": ["batch", 64, 6]}, {"in_halo": 0, "rank": 3}, [TOKENS]),
        ("Flatten", {"x": X}, {**MAP, "channels": 3, "tokens": 1}, [["ceil(batch/16)", 3, 1, 72, 16]]),
        (
            "GroupNorm",
            {"x": X, "scale": [3], "bias": [3]},
            {"epsilon": 1e-5, "groups": 3, "in_halo": 1, "out_halo": 0},
            [["ceil(batch/16)", 3, 9, 8, 16], *[["ceil(batch/16)", 3, 16]] * 2],
        ),
        (
            "GroupNormGrad",
            {"dy": ["b", 3, 9, 8, 16], "x": X, "scale": [3], "mean": ["b", 3, 16], "invstd": ["b", 3, 16]},
            {"epsilon": 1e-5, "groups": 3, "in_halo": 1, "out_halo": 0},
            [X, UNKNOWN, UNKNOWN],
        ),
        (
            "LayerNorm",
            {"x": TOKENS, "scale": [6], "bias": [6]},
            {"epsilon": 1e-5},
            [TOKENS, *[["ceil(batch/16)", 64, 16]] * 2],
        ),
        (
            "LayerNormGrad",
            {"dy": TOKENS, "x": TOKENS, "scale": [6], "mean": ["b", 64, 16], "invstd": ["b", 64, 16]},
            {"epsilon": 1e-5},
            [TOKENS, UNKNOWN, UNKNOWN],
        ),
        ("LeakyRelu", {"x": X}, {"alpha": 0.1}, [X]),
        ("LeakyReluGrad", {"dy": X, "y": X}, {"alpha": 0.1}, [X]),
        ("Gelu", {"x": X}, {"tanh": 0}, [X]),
        ("GeluGrad", {"dy": X, "x": X}, {"tanh": 0}, [X]),
        ("AddWeight", {"x": TOKENS, "weight": [1, 64, 6]}, {"halo": 0, "channels_last": 1}, [TOKENS]),
        ("AddWeightGrad", {"dy": TOKENS, "weight": [64, 6]}, {"halo": 0, "channels_last": 1}, [UNKNOWN]),
        (
            "Attention",
            {"qkv": TOKENS},
            {"heads": 2},
            [["ceil(batch/16)", 2, 1, 64, 16], ["ceil(batch/16)", 2, 64, 64, 16]],
        ),
        (
            "AttentionGrad",
            {"dy": ["b", 2, 1, 64, 16], "qkv": TOKENS, "probability": ["b", 2, 64, 64, 16]},
            {"heads": 2},
            [TOKENS],
        ),
        ("SoftmaxCrossEntropy", {"scores": ["batch", 10], "labels": ["batch"]}, {}, [[], ["batch", 10]]),
        (
            "SoftmaxCrossEntropyGrad",
            {"dloss": [], "log_prob": ["batch", 10], "labels": ["batch"]},
            {},
            [["batch", 10]],
        ),
    ],
)
def test_shapes_are_inferred_and_unknown_ones_do_no_harm(op_type, inputs, attributes, expected):
    assert inferred(op_type, inputs, len(expected), **attributes) == expected
    # Neither sizes without a name nor missing ranks may fail the creation of a session.
    unnamed = {name: shape and [None] * len(shape) for name, shape in inputs.items()}
    inferred(op_type, unnamed, len(expected), **attributes)
    inferred(op_type, dict.fromkeys(inputs), len(expected), **attributes)
    # Contradictions wait until the node runs.
    inferred(op_type, {name: [2, 2, 2] for name in inputs}, len(expected), **attributes)
