"""sparsefleet bench gemm: one square linear layer, all three products, beside torch's dense Linear.

SparseGemm forward, input gradient and weight gradient on blocked activations, as inside a graph,
against Linear forward and backward with the same three products. No optimizer on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.fixed_indices import FixedIndices
from edge_client.kernels import library_path
from edge_client.ort import kernel_isa, onnxruntime, session_options
from protocol.sparse import top_k
from tools.bench import wire
from tools.bench.timing import SECONDS, Step, alternate, clock_of, say_once

LANES = 16  # Examples of one block; edge_client/kernels/blocked.h.
Arrays = dict[str, npt.NDArray[Any]]


def measure(
    size: int, batch_size: int, density: float, threads: int, seconds: float = SECONDS
) -> dict[str, Any]:
    """Return the measurement; without torch its figures are null, and stderr says so."""
    rng = np.random.default_rng(0)
    nnz = max(1, round(density * size * size))
    steps: dict[str, Step] = {"sparse": _sparse_step(size, batch_size, nnz, threads, rng)}
    try:
        steps["dense_torch"] = _torch_step(size, batch_size, threads)
    except ImportError as error:
        say_once(f"dense_torch is null: {error}")
    times = alternate(steps, threads, seconds)
    dense_s = times.get("dense_torch")
    operations = 3 * 2 * batch_size  # Three products; a multiplication and an addition.
    return {
        "size": size,
        "batch": batch_size,
        "density": density,
        "threads": threads,
        "clock": clock_of(threads),
        "sparse_s": times["sparse"],
        "sparse_gflop_per_s": operations * nnz / times["sparse"] / 1e9,
        "dense_torch_s": dense_s,
        "dense_torch_gflop_per_s": operations * size * size / dense_s / 1e9 if dense_s else None,
        "ratio_torch": dense_s / times["sparse"] if dense_s else None,
        "isa": kernel_isa(library_path()),
    }


def session_step(
    nodes: Sequence[wire.Node], feeds: Arrays, outputs: dict[str, tuple[int, ...]], threads: int
) -> Step:
    """Return a step that runs a graph of our ops with everything bound, float outputs of these shapes."""
    element = {np.dtype(np.float32): wire.FLOAT, np.dtype(np.int32): wire.INT32}
    model = wire.model(
        nodes,
        [wire.Value(name, element[array.dtype], array.ndim) for name, array in feeds.items()],
        [wire.Value(name, wire.FLOAT, len(shape)) for name, shape in outputs.items()],
    )
    session = onnxruntime().InferenceSession(
        model, session_options(library_path(), threads), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    made = {name: aligned(shape) for name, shape in outputs.items()}
    fixed = FixedIndices(library_path(), [array for array in feeds.values() if array.dtype == np.int32])
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in made.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def step(_kept_alive: object = (feeds, made, fixed)) -> None:
        session.run_with_iobinding(binding)

    return step


def aligned(shape: tuple[int, ...], rng: np.random.Generator | None = None) -> npt.NDArray[np.float32]:
    """Return an array that begins on a cache line, as ONNX Runtime's buffers do; random, or zeros."""
    count = int(np.prod(shape))
    raw = np.zeros(count + 16, np.float32)
    array = raw[(-raw.ctypes.data // 4) % 16 :][:count].reshape(shape)
    if rng is not None:
        array[...] = rng.standard_normal(shape, dtype=np.float32)
    return array


def _sparse_step(size: int, batch_size: int, nnz: int, threads: int, rng: np.random.Generator) -> Step:
    vectors = (-(-batch_size // LANES), size, 1, 1, LANES)
    feeds: Arrays = {
        "x": aligned(vectors, rng),
        "dy": aligned(vectors, rng),
        "values": aligned((nnz,), rng),
        "indices": top_k(rng.random(size * size), nnz),
    }
    attributes = {"out_features": size}
    nodes = [
        wire.Node("SparseGemm", ("x", "values", "indices"), ("y",), attributes, "forward"),
        wire.Node(
            "SparseGemmGrad",
            ("dy", "x", "values", "indices"),
            ("dx", "dvalues", ""),
            attributes,
            "backward",
        ),
    ]
    return session_step(nodes, feeds, {"y": vectors, "dx": vectors, "dvalues": (nnz,)}, threads)


def _torch_step(size: int, batch_size: int, threads: int) -> Step:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = torch.nn.Linear(size, size, bias=False)
    x = torch.randn(batch_size, size, requires_grad=True)
    dy = torch.randn(batch_size, size)

    def step() -> None:
        layer.weight.grad = x.grad = None
        layer(x).backward(dy)

    return step


def line(found: dict[str, Any]) -> str:
    """One measurement for people."""
    against = (
        f"torch {1e3 * found['dense_torch_s']:.3f} ms ({found['dense_torch_gflop_per_s']:.0f} GFLOP/s), "
        f"{found['ratio_torch']:.1f}x"
        if found["ratio_torch"]
        else "no torch to compare with"
    )
    return (
        f"gemm {found['size']} batch {found['batch']}, density {found['density']:g}, {found['threads']} thread(s), "
        f"{found['isa']}: sparse {1e3 * found['sparse_s']:.3f} ms ({found['sparse_gflop_per_s']:.0f} GFLOP/s); "
        f"{against}"
    )
