"""sparsefleet bench layers: each distinct layer of a model alone and hot, beside the roofline.

Forward, input gradient and weight gradient in GFLOP/s, at 2 operations for each stored weight, output
pixel and example, and as a share of two limits that take turns with them: of the load-limited roofline
(roofline.py: the inner loop with its tile in L1), and of that or memory's, whichever takes longer: moving
the pixels under its windows and its outputs once, as a plain loop over as many bytes does (weights so few
that they leave pixels out may beat it). The runtime's cost of a call is in these times. Layers of one
geometry are measured once, and say how many they are. The first layer has no input gradient: null.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from protocol.sparse import top_k
from tools.bench import wire
from tools.bench.gemm import Arrays, aligned, session_step
from tools.bench.roofline import L1_BYTES, Limits
from tools.bench.subject import Layer, Subject
from tools.bench.timing import Step, alternate, clock_of

SECONDS = 1.0  # For each pass of each layer.
PASSES = ("forward", "input_gradient", "weight_gradient")
# So many that the call itself does not count: they take about 0.3 ms, as layers do.
GATHER_ROUNDS = 256
GATHER, MEMORY = "gather", "memory of "


def measure(
    subject: Subject, batch_size: int, density: float, threads: int = 1, seconds: float = SECONDS
) -> dict[str, Any]:
    """Return every distinct layer at this density."""
    limits = Limits.load()
    by_geometry: dict[str, list[Layer]] = {}
    for layer in subject.layers(batch_size):
        by_geometry.setdefault(repr(dataclasses.replace(layer, weight="")), []).append(layer)
    return {
        "model": subject.manifest.model,
        "batch": batch_size,
        "density": density,
        "threads": threads,
        "clock": clock_of(threads),
        "isa": limits.isa,
        "layers": [
            {"layer": alike[0].weight, "count": len(alike)}
            | _one(alike[0], batch_size, density, threads, limits, seconds)
            for alike in by_geometry.values()
        ],
    }


def _one(
    layer: Layer, batch_size: int, density: float, threads: int, limits: Limits, seconds: float
) -> dict[str, Any]:
    """Measure one layer; a share is of the roofline of as many threads."""
    rng = np.random.default_rng(0)
    size = int(np.prod(layer.shape))
    nnz = max(1, round(density * size))
    gather = limits.gather(L1_BYTES)
    steps = _steps(layer, nnz, threads, rng)
    memory = {f"{MEMORY}{name}": step for name, step in _memory_steps(layer, limits).items() if name in steps}
    times = alternate(steps | memory | {GATHER: lambda: gather(GATHER_ROUNDS)}, threads, seconds)
    limit = gather(GATHER_ROUNDS) / times[GATHER] / 1e9 * threads
    operations = 2 * nnz * layer.pixels * batch_size
    found: dict[str, Any] = {
        "op": "gemm" if _is_gemm(layer) else "conv",
        "shape": "x".join(str(n) for n in layer.shape),
        "stride": layer.attributes.get("stride", 1),
        "pixels": layer.pixels,
        "stored_weights": nnz,
        "gather_l1_gflop_per_s": limit,
    }
    for name in PASSES:
        rate = operations / times[name] / 1e9 if name in times else None
        share = rate / limit if rate else None
        memory_s = times.get(f"{MEMORY}{name}")
        least_s = max(operations / limit / 1e9, memory_s / threads) if memory_s else None
        found |= {f"{name}_s": times.get(name), f"{name}_gflop_per_s": rate, f"{name}_share": share}
        found |= {f"{name}_memory_s": memory_s, f"{name}_limit_share": least_s and least_s / times[name]}
    taken_s = sum(times[name] for name in steps)
    least_s = sum(found[f"{name}_limit_share"] * times[name] for name in steps)
    rate = len(steps) * operations / taken_s / 1e9
    return found | {"gflop_per_s": rate, "share": rate / limit, "limit_share": least_s / taken_s}


def _memory_steps(layer: Layer, limits: Limits) -> dict[str, Step]:
    """For each pass a loop over as many bytes as it must move: copies, but a weight gradient only reads."""
    _, _, *kernel = layer.shape if len(layer.shape) == 4 else (*layer.shape, 1, 1)
    stride = layer.attributes.get("stride", 1)
    touched = math.prod(min(1.0, size / stride) for size in kernel)  # Pixels of x under some window.
    x_bytes = 4 * math.prod(layer.x_shape)
    y_bytes = 4 * math.prod(layer.y_shape)
    both = round(touched * x_bytes) + y_bytes
    reading = limits.read(both)
    return {
        "forward": limits.copy(both),
        "input_gradient": limits.copy(4 * math.prod(layer.dx_shape or ()) + y_bytes),
        "weight_gradient": lambda: reading(1),
    }


def _is_gemm(layer: Layer) -> bool:
    return "out_features" in layer.attributes


def _steps(layer: Layer, nnz: int, threads: int, rng: np.random.Generator) -> dict[str, Step]:
    """The passes that training needs, as graphs of one node each, without bias."""
    op = "SparseGemm" if _is_gemm(layer) else "SparseConv"
    feeds: Arrays = {
        "dy": aligned(layer.dy_shape, rng),
        "x": aligned(layer.x_shape, rng),
        "values": aligned((nnz,), rng),
        "indices": top_k(rng.random(int(np.prod(layer.shape))), nnz),
    }

    def backward(outputs: tuple[str, str, str], shape: tuple[int, ...]) -> Step:
        node = wire.Node(f"{op}Grad", tuple(feeds), outputs, layer.gradient_attributes, "layer")
        return session_step([node], feeds, {"".join(outputs): shape}, threads)

    node = wire.Node(op, ("x", "values", "indices"), ("y",), layer.attributes, "layer")
    inputs = {name: feeds[name] for name in node.inputs}
    steps = {"forward": session_step([node], inputs, {"y": layer.y_shape}, threads)}
    if layer.dx_shape is not None:
        steps["input_gradient"] = backward(("dx", "", ""), layer.dx_shape)
    return steps | {"weight_gradient": backward(("", "dvalues", ""), (nnz,))}


def lines(found: dict[str, Any]) -> list[str]:
    """The layers for people."""
    out = [
        f"{found['model']} batch {found['batch']}, density {found['density']:g}, {found['isa']}, "
        "GFLOP/s (share of the load-limited roofline, of the lower one of loads and memory)",
        f"  {'layer':28} {'shape':>14} {'count':>5} {'forward':>18} {'dx':>18} {'dw':>18} {'all':>18}",
    ]
    for row in found["layers"]:
        cells = "".join(_cell(row, prefix) for prefix in (*(f"{one}_" for one in PASSES), ""))
        out.append(f"  {row['layer']:28} {row['shape']:>14} {row['count']:5}{cells}")
    return out


def _cell(row: dict[str, Any], prefix: str) -> str:
    if row[f"{prefix}share"] is None:
        return f" {'-':>18}"
    shares = (100 * row[f"{prefix}{limit}"] for limit in ("share", "limit_share"))
    return f" {row[f'{prefix}gflop_per_s']:7.1f} ({', '.join(f'{share:3.0f}' for share in shares)}%)"
