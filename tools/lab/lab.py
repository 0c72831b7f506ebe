"""sparsefleet lab: all cells of a lab file, several at a time, and the table that they make.

Each finished cell is a file, so a lab that was stopped goes on where it was; to repeat one, remove
its folder.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from protocol.errors import ConfigError, UserError
from tools.dataset import read as read_data
from tools.lab import costs
from tools.lab.cell import backend_of, partition, run
from tools.lab.plan import Cell, Plan, cells, read, skew_name, source_of

PLAN = "plan.json"
SIZES = ["upload_bytes_per_round", "download_bytes_per_round", "compression"]
STRUCTURE = ["mask_iou", "union_density", "min_layer_density"]


def run_lab(path: Path, out: Path, processes: int, as_json: bool) -> int:
    """Run what is missing and print the table; it is also written as table.md, table.csv and plot.png."""
    plan = read(path)
    prepare(plan, out)
    for alpha, seed in itertools.product(plan.skews, plan.seeds):  # Here: cells of one would race.
        partition(plan, alpha, seed, out)
    todo = cells(plan)
    begin_s = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    # Spawned: a forked child of a process with running threads may hang.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_cell, path, cell, out): cell for cell in todo}
        for future in as_completed(waiting):
            cell = waiting[future]
            if future.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(
                    f"cell {cell.name} failed: {future.exception()}; what is done is kept in {out}"
                )
            result = future.result()
            results[cell.name] = result
            left_s = (time.monotonic() - begin_s) / len(results) * (len(todo) - len(results))
            text = f"{len(results)}/{len(todo)} {result['row']} {skew_name(cell.alpha)} seed {cell.seed}"
            print(
                f"{text}: {100 * result['accuracy']:.1f} %; about {left_s / 60:.0f} min left", file=sys.stderr
            )
    rows = table(plan, results)
    _write(out, rows)
    _plot(out, plan, results)
    print(json.dumps(rows) if as_json else markdown(rows))
    return 0


def _cell(path: Path, cell: Cell, out: Path) -> dict[str, Any]:
    return run(read(path), cell, out)


def prepare(plan: Plan, out: Path) -> None:
    """Export the model and draw the examples, once.

    Raises:
        ConfigError: the folder holds another lab; the data have no such ids.
        RuntimeMissing: the back-end cannot be used here.
    """
    backend_of(plan)
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).is_file():
        if _plan_in(out) != plan:
            raise ConfigError(f"{out} holds a lab with another plan; choose another --out, or remove it")
        return
    from edge_client.kernels import library_path
    from export.export import export_model
    from export.models import input_shape

    by = plan.data.by
    data = read_data(source_of(plan), by or None)
    if by and data.ids is None:
        raise ConfigError(
            f"{data.name} has no array {by!r} with one entry per example; name another as data.by"
        )
    rng = np.random.default_rng(0)
    arrays = {"x_train": data.x, "y_train": data.y}
    if data.ids is not None:
        arrays[f"{by}_train"] = data.ids
    if data.test is not None:
        arrays |= {"x_test": data.test[0], "y_test": data.test[1]}
    for part, count in (("train", plan.data.train), ("test", plan.data.test)):
        if f"x_{part}" in arrays and 0 < count < len(arrays[f"y_{part}"]):
            chosen = np.sort(rng.permutation(len(arrays[f"y_{part}"]))[:count])
            arrays |= {name: array[chosen] for name, array in arrays.items() if name.endswith(f"_{part}")}
    if data.test is None:
        arrays = {name.removesuffix("_train"): array for name, array in arrays.items()}
    np.savez_compressed(out / "source.npz", **arrays)  # type: ignore[arg-type]
    shape = input_shape(plan.model, plan.input_shape)
    export_model(plan.model, shape, plan.num_classes, out / "artifact", library_path())
    (out / PLAN).write_bytes(msgspec.json.encode(plan))  # Last: a folder with it is complete.


def _plan_in(out: Path) -> Plan | None:
    """The plan of a folder; None if it is none of this version's."""
    try:
        return msgspec.json.decode((out / PLAN).read_bytes(), type=Plan)
    except msgspec.DecodeError:  # What is no plan, too.
        return None


def table(plan: Plan, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and alpha: means over seeds."""
    rows: list[dict[str, Any]] = []
    for alpha in plan.skews:
        first = len(rows)
        for index, row in enumerate(plan.rows):
            found = [results[Cell(index, alpha, seed).name] for seed in plan.seeds]
            accuracy = [one["accuracy"] for one in found]
            sums = [one["zero_sum_max"] for one in found if one["zero_sum_max"] is not None]
            means = {
                name: statistics.fmean(one[name] for one in found)
                for name in (*SIZES, *STRUCTURE, "density", "local_accuracy")
            }
            rows.append(
                {
                    "method": row.label,
                    "density": means["density"],
                    "alpha": alpha,
                    "seeds": len(found),
                    "accuracy_mean": statistics.fmean(accuracy),
                    "accuracy_std": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                    "local_accuracy_mean": means["local_accuracy"],
                    **{name: means[name] for name in (*SIZES, *STRUCTURE)},
                    "zero_sum_max": max(sums, default=None),
                    "alarms": sum(one["alarms"] for one in found),
                }
            )
        if plan.boards:
            by_row = [
                [results[Cell(index, alpha, seed).name] for seed in plan.seeds]
                for index in range(len(plan.rows))
            ]
            for row_, more in zip(rows[first:], costs.compared(by_row), strict=True):
                row_.update(more)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = [
        "| method | alpha | density | accuracy % | local % | up kB/round | down kB/round | compression | mask IoU | "
        "union | least layer | sum of controls |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alpha = "natural" if row["alpha"] is None else f"{row['alpha']:g}"
        controls = "" if row["zero_sum_max"] is None else f"{row['zero_sum_max']:.0e}"
        lines.append(
            f"| {row['method']} | {alpha} | {row['density']:.3g} | "
            f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f} | "
            f"{100 * row['local_accuracy_mean']:.1f} | {row['upload_bytes_per_round'] / 1e3:.1f} | "
            f"{row['download_bytes_per_round'] / 1e3:.1f} | {row['compression']:.1f}x | {row['mask_iou']:.2f} | "
            f"{row['union_density']:.3g} | {row['min_layer_density']:.3g} | {controls} |"
        )
    if rows and "joules" in rows[0]:
        lines += ["", costs.markdown(rows)]
    return "\n".join(lines)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    (out / "table.md").write_text(markdown(rows) + "\n")
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plot(out: Path, plan: Plan, results: dict[str, dict[str, Any]]) -> None:
    """Accuracy by round, a panel for each alpha."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print(
            "sparsefleet lab: no plot, since matplotlib is missing: pip install 'sparsefleet[plots]'",
            file=sys.stderr,
        )
        return
    figure, axes = pyplot.subplots(1, len(plan.skews), figsize=(6 * len(plan.skews), 4), squeeze=False)
    for axis, alpha in zip(axes[0], plan.skews, strict=True):
        for index, row in enumerate(plan.rows):
            runs = [results[Cell(index, alpha, seed).name]["accuracy_by_round"] for seed in plan.seeds]
            numbers = [number for number, _ in runs[0]]
            axis.plot(numbers, np.mean([[a for _, a in run] for run in runs], axis=0), label=row.label)
        axis.set(title=skew_name(alpha), xlabel="round", ylabel="accuracy")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(out / "plot.png", dpi=150)
    pyplot.close(figure)


def default_out(path: Path) -> Path:
    """Where a lab file's results go: named by its content too, so that a changed file is another lab."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return Path("runs/lab") / f"{path.stem}-{digest}"
