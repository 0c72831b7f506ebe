"""One cell of a lab: a whole federation over Loopback, and what it reached, as one JSON file."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.evaluate import Evaluator
from coordinator.experiment import EvaluationConfig, Experiment, InitialConfig
from coordinator.report import ROUNDS, read_csv
from edge_client.runtime import Backend
from protocol import artifact as artifacts
from protocol.durable import replace_file
from protocol.errors import ConfigError
from protocol.examples import load
from protocol.sparse import Mask, SparseVector, iou
from tools.lab.boards import ModelledBoard
from tools.lab.costs import costs
from tools.lab.plan import Cell, Plan, cohort_of, skew_name, training_of
from tools.simulate import simulate
from tools.split import SPLIT, split

RESULT = "result.json"
WARM_UP = 0.5  # Bytes for each round are those of the second half: masks have settled, and travelled.


def run(plan: Plan, cell: Cell, home: Path) -> dict[str, Any]:
    """Run a cell, unless its result is there already; return the result."""
    folder = home / "cells" / cell.name
    if (folder / RESULT).is_file():
        return dict(json.loads((folder / RESULT).read_text()))
    logging.disable(logging.ERROR)
    shutil.rmtree(folder, ignore_errors=True)
    data = partition(plan, cell.alpha, cell.seed, home)
    row = plan.rows[cell.row]
    experiment = Experiment(
        artifact=str(home / "artifact"),
        data=str(data),
        rounds=plan.rounds,
        method=row.method,
        training=training_of(plan, row),
        cohort=cohort_of(plan, row),
        seed=cell.seed,
        initial=InitialConfig("seed", row.gain),
        schedule=row.schedule,
        wire=row.wire,
        evaluation=EvaluationConfig(every=max(1, plan.rounds // 20)),
    )
    parts = json.loads((data / SPLIT).read_text())["clients"]
    files = {Path(part["file"]).stem: data / part["file"] for part in parts}
    local: dict[str, SparseVector] = {}
    masks: dict[str, Mask] = {}

    def observe(client_id: str, model: SparseVector, upload: SparseVector) -> None:
        local[client_id], masks[client_id] = model, upload.mask

    boards = {}
    if plan.boards:
        kinds = [board for board in plan.boards for _ in range(board.count)]
        boards = {name: ModelledBoard(board) for name, board in zip(sorted(files), kinds, strict=True)}
    simulate(experiment, files, folder, observe=observe, backend=backend_of(plan), boards=boards or None)
    if not masks:
        raise ConfigError(f"{folder}: no client trained; events.jsonl says why they refused")
    num_prunable = artifacts.read(Path(experiment.artifact)).layout.num_prunable
    result = {
        "row": row.label,
        "alpha": cell.alpha,
        "seed": cell.seed,
        **_of_rounds(folder, experiment),
        "mask_iou": _overlap([masks[client_id].below(num_prunable) for client_id in sorted(masks)]),
        **(costs(folder) if boards else {}),
        **_local(experiment, local, {Path(part["file"]).stem: part["labels"] for part in parts}),
    }
    shutil.rmtree(folder / "state", ignore_errors=True)  # Megabytes for each client.
    replace_file(folder / RESULT, json.dumps(result, indent=1).encode())
    return result


def backend_of(plan: Plan) -> Backend | None:
    """Return what runs the clients' steps; None is what runs on devices.

    Raises:
        RuntimeMissing: PyTorch cannot use the device here.
    """
    kind, _, device = plan.backend.partition("-")
    if kind != "torch":
        return None
    from tools.lab.torch_runtime import choose_device, torch_backend

    return torch_backend(choose_device(device))


def partition(plan: Plan, alpha: float | None, seed: int, home: Path) -> Path:
    """Return the folder of a partition, made where it is missing; cells of the same alpha and seed share it."""
    folder = home / "data" / f"{skew_name(alpha)}-seed-{seed}"
    if not (folder / SPLIT).is_file():
        source, clients = home / "source.npz", plan.data.clients
        if alpha is None:
            split(source, folder, clients, "by", by=plan.data.by, seed=seed, force=True)
        else:
            split(source, folder, clients, "dirichlet", alpha, seed=seed, force=True)
    return folder


def _of_rounds(folder: Path, experiment: Experiment) -> dict[str, Any]:
    rows = read_csv(folder / ROUNDS)
    artifact = artifacts.read(Path(experiment.artifact))
    late = rows[int(WARM_UP * len(rows)) :]

    def mean(column: str) -> float:
        return float(np.mean([float(line[column]) for line in late]))

    up, down = mean("upload_bytes"), mean("download_bytes")
    dense = 4 * artifact.layout.size * float(np.mean([int(line["updates"]) for line in late]))
    controls = [float(line["control_sum"]) for line in rows if line["control_sum"]]
    return {
        "accuracy": float(rows[-1]["accuracy"]),
        "accuracy_by_round": [
            (int(line["round_number"]), float(line["accuracy"])) for line in rows if line["accuracy"]
        ],
        "density": float(rows[-1]["density"]),
        "union_density": float(rows[-1]["union_density"]),
        "min_layer_density": float(rows[-1]["min_layer_density"]),
        "empty_layers": int(rows[-1]["empty_layers"]),
        "upload_bytes_per_round": up,
        "upload_bound_bytes_per_round": mean("upload_bound_bytes"),
        "download_bytes_per_round": down,
        "compression": 2 * dense / (up + down),
        "total_bytes": sum(int(line["upload_bytes"]) + int(line["download_bytes"]) for line in rows),
        "zero_sum_max": max(controls, default=None),
        "alarms": sum(int(line["alarms"]) for line in rows),
        "dropouts": sum(int(line["dropouts"]) for line in rows),
    }


def _local(
    experiment: Experiment, local: dict[str, SparseVector], labels: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Accuracy of each client's last own model on test examples of its own mix of classes, averaged."""
    artifact = Path(experiment.artifact)
    manifest = artifacts.read(artifact)
    test = load(Path(experiment.data) / "test.npz", manifest.input_shape, manifest.num_classes)
    by_class = {
        str(label): Evaluator(manifest, artifact, test.x[test.y == label], test.y[test.y == label], 1)
        for label in np.unique(test.y)
    }
    reached = []
    for client_id, model in sorted(local.items()):  # So that sums round alike.
        mix = {label: count for label, count in labels[client_id].items() if label in by_class}
        dense, total = model.dense(), sum(mix.values())
        scores = [count * (by_class[label].scores(dense).accuracy or 0.0) for label, count in mix.items()]
        reached.append(sum(scores) / total)
    return {"local_accuracy": float(np.mean(reached))}


def _overlap(masks: list[Mask]) -> float:
    """Mean intersection over union of the clients' last uploads."""
    overlaps = [iou(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    return float(np.mean(overlaps)) if overlaps else 1.0
