"""sparsefleet bench [--out DIR]: every measurement of this machine, and where asked files of it.

    DIR/bench.json      everything, a list of objects for each part
    DIR/<part>.csv      the same as a table: step, gemm, layers, roofline, memory
    DIR/speedup.png     speed against FLOP density, if matplotlib is installed

An empty cell, null in JSON, is what was not installed or does not apply.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench import gemm, layers, memory, roofline, step
from tools.bench.masks import ERK, UNIFORM
from tools.bench.subject import from_model
from tools.bench.timing import SECONDS, say_once

Rows = list[dict[str, Any]]


def measure(
    batches: Mapping[str, int],
    densities: Sequence[float],
    threads: int,
    out: Path | None,
    seconds: float = SECONDS,
) -> None:
    """Measure everything for these models and batch sizes, print it, and write it to `out`."""
    found: dict[str, Rows] = {"roofline": [roofline.measure()]}
    print("\n".join(roofline.lines(found["roofline"][0])), flush=True)
    found["gemm"] = [gemm.measure(1024, 64, density, threads, seconds) for density in densities]
    print("\n".join(map(gemm.line, found["gemm"])), flush=True)
    found |= {"memory": [], "step": [], "layers": []}
    for model, batch in batches.items():
        subject = from_model(model)
        for density in densities:
            for masks in (UNIFORM, ERK):
                row = step.measure(subject, batch, density, masks, threads, seconds=seconds)
                found["step"].append(row)
                print(step.line(row), flush=True)
            found["memory"].append(memory.measure(subject, batch, density, UNIFORM, threads))
            print(memory.line(found["memory"][-1]), flush=True)
        of_layers = layers.measure(subject, batch, densities[len(densities) // 2], threads, seconds / 4)
        print("\n".join(layers.lines(of_layers)), flush=True)
        found["layers"] += flat(of_layers)
        if out is not None:  # After each model: an interrupted run keeps its figures.
            write(found, out)


def flat(of_layers: dict[str, Any]) -> Rows:
    """One row for each layer, with what all of them share."""
    shared = {name: value for name, value in of_layers.items() if name != "layers"}
    return [shared | row for row in of_layers["layers"]]


def write(found: Mapping[str, Rows], out: Path) -> None:
    """Write the JSON file, a CSV file for each part, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    for part, rows in found.items():
        write_csv(out / f"{part}.csv", rows)
    plot(found["step"], out / "speedup.png")


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows as CSV; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot(steps: Rows, path: Path) -> None:
    """Draw speed against dense torch, or against our own dense step where there is no torch.

    Without matplotlib there is no plot, and stderr says how to get one.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        say_once(f"no {path.name}: {error}; pip install 'sparsefleet[plots]'")
        return
    against = "torch" if any(row["ratio_torch"] for row in steps) else "dense"
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    series: dict[str, Rows] = {}
    for row in steps:
        series.setdefault(f"{row['model']} batch {row['batch']}, {row['masks']}", []).append(row)
    for label, rows in series.items():
        points = sorted((row["flop_density"], row[f"ratio_{against}"]) for row in rows)
        axes.plot(
            *zip(*points, strict=True), marker="o", linestyle="--" if "erk" in label else "-", label=label
        )
    ends = [min(row["flop_density"] for row in steps), 1.0]
    axes.plot(ends, [1 / end for end in ends], color="grey", linewidth=1, label="1 / FLOP density")
    axes.set_xlabel("FLOP density: multiply-adds of the stored weights by the dense network's")
    name = "dense torch" if against == "torch" else "our own dense step"
    axes.set_ylabel(f"speed-up of a training step against {name}")
    axes.set_title(f"{steps[0]['isa']}, {steps[0]['threads']} thread(s), {steps[0]['clock']} time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
