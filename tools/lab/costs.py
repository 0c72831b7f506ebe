"""What a lab's modelled boards spent: joules and seconds until an accuracy that all rows reach."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.report import DEVICES, ROUNDS, parse_device_row, read_csv

COLUMNS = {
    "joules": "J in all",
    "seconds": "s in all",
    "target": "target %",
    "reached": "seeds that reach it",
    "joules_to_target": "J to target",
    "seconds_to_target": "s to target",
    "least_asked": "least asked",
    "most_asked": "most asked",
}


def costs(folder: Path) -> dict[str, Any]:
    """Return what a cell spent by round, and how often its clients were asked.

    A round takes as long as the slowest of its clients trains.
    """
    joules: dict[int, float] = defaultdict(float)
    seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    asked: dict[str, set[int]] = defaultdict(set)
    for row in map(parse_device_row, read_csv(folder / DEVICES)):
        joules[row.round_number] += row.energy_j or 0.0
        seconds[row.round_number][row.client_id] += row.duration_s
        asked[row.client_id].add(row.round_number)
    spent_j = spent_s = 0.0
    curve = []
    for line in read_csv(folder / ROUNDS):
        number = int(line["round_number"])
        spent_j += joules[number]
        spent_s += max(seconds[number].values(), default=0.0)
        if line["accuracy"]:
            curve.append((float(line["accuracy"]), spent_j, spent_s))
    return {"spent": curve, "asked": {client_id: len(rounds) for client_id, rounds in sorted(asked.items())}}


def compared(rows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the columns of each row, whose cells are those of its seeds.

    The target is the mean over seeds of the lowest among the rows' best accuracies.
    """
    best = [[max(accuracy for accuracy, _, _ in cell["spent"]) for cell in row] for row in rows]
    target = min(statistics.fmean(row) for row in best)
    return [_row(row, target) for row in rows]


def _row(cells: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    reached = [
        next(((joules, seconds) for accuracy, joules, seconds in cell["spent"] if accuracy >= target), None)
        for cell in cells
    ]
    known = [pair for pair in reached if pair is not None]
    counts = [list(cell["asked"].values()) for cell in cells]
    return {
        "joules": statistics.fmean(cell["spent"][-1][1] for cell in cells),
        "seconds": statistics.fmean(cell["spent"][-1][2] for cell in cells),
        "target": 100 * target,
        "reached": len(known),
        "joules_to_target": statistics.fmean(joules for joules, _ in known) if known else None,
        "seconds_to_target": statistics.fmean(seconds for _, seconds in known) if known else None,
        "least_asked": min(min(count) for count in counts),
        "most_asked": max(max(count) for count in counts),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The columns for people, beside each row's method and accuracy."""
    lines = [
        "| method | alpha | accuracy % | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for row in rows:
        alpha = "natural" if row["alpha"] is None else f"{row['alpha']:g}"
        accuracy = f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
        figures = ["never" if row[name] is None else f"{row[name]:.4g}" for name in COLUMNS]
        lines.append(f"| {row['method']} | {alpha} | {accuracy} | {' | '.join(figures)} |")
    return "\n".join(lines)
