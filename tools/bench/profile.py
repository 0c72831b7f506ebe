"""sparsefleet bench profile: where the time of a step goes, by operator, as ONNX Runtime measures it.

Milliseconds are wall-clock, medians over steps; what the runtime spends between operators, the
optimizer and the client's loop are not in them, so they add up to less than `bench step` says.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.bindings import Slices
from edge_client.kernels import library_path
from edge_client.ort import kernel_isa, onnxruntime, session_options
from protocol.artifact import STEP
from protocol.layout import PRUNABLE
from tools.bench import masks as masking
from tools.bench.subject import Subject, weights

NUM_STEPS = 12
NUM_WARM = 2  # Steps that make plans and buffers; they are left out.


def measure(
    subject: Subject, batch_size: int, density: float, masks: str, threads: int, num_steps: int = NUM_STEPS
) -> dict[str, Any]:
    """Return the time of each kind of operator in one step, the longest first."""
    options = session_options(library_path(), threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/step"
        session = onnxruntime().InferenceSession(
            str(subject.folder / STEP), options, providers=["CPUExecutionProvider"]
        )
        feeds = _feeds(subject, batch_size, density, masks)
        known = {tensor.name: feeds[tensor.name] for tensor in session.get_inputs()}
        for _ in range(NUM_WARM + num_steps):
            session.run(None, known)
        events = json.loads(Path(session.end_profiling()).read_text())
    return {
        "model": subject.manifest.model,
        "batch": batch_size,
        "density": density,
        "masks": masks,
        "threads": threads,
        "isa": kernel_isa(library_path()),
        "operators": _by_operator(events, num_steps),
    }


def _feeds(subject: Subject, batch_size: int, density: float, masks: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    layout = subject.manifest.layout
    model = weights(layout, masking.random_mask(layout, density, masks, rng), rng)
    slices = Slices.of(model.mask, subject.manifest)
    x, labels = subject.batch(batch_size, rng)
    feeds: dict[str, Any] = {"x": x, "labels": labels, "temperature": np.ones((), np.float32)}
    for piece in layout.pieces:
        values = model.values[slices.parts[piece.name]]
        feeds[piece.name] = values if piece.role == PRUNABLE else values.reshape(piece.shape)
    return feeds | {f"{name}.indices": indices for name, indices in slices.indices.items()}


def _by_operator(events: list[dict[str, Any]], num_steps: int) -> list[dict[str, Any]]:
    """Sum the nodes of each operator; of a node the median of its last `num_steps` runs counts."""
    runs: dict[str, list[float]] = {}
    operator: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs.setdefault(event["name"], []).append(event["dur"] / 1e6)
            operator[event["name"]] = event["args"]["op_name"]
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    for node, durations in runs.items():
        name = operator[node]
        total[name] = total.get(name, 0.0) + statistics.median(durations[-num_steps:])
        count[name] = count.get(name, 0) + 1
    whole = sum(total.values())
    return [
        {"operator": name, "count": count[name], "time_s": total[name], "share": total[name] / whole}
        for name in sorted(total, key=lambda name: -total[name])
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """The profile for people."""
    whole = sum(row["time_s"] for row in found["operators"])
    out = [
        f"{found['model']} batch {found['batch']}, {found['masks']} density {found['density']:g}, {found['isa']}, "
        f"{found['threads']} thread(s): {1e3 * whole:.2f} ms in operators"
    ]
    for row in found["operators"]:
        out.append(
            f"  {row['operator']:28} {row['count']:4} x {1e3 * row['time_s']:9.3f} ms {100 * row['share']:5.1f} %"
        )
    return out
