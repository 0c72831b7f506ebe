"""The figures, as SVG without scripts: each is an image of its own, so that their names cannot clash.

Colours are Okabe and Ito's, which colour-blind readers tell apart; what was not measured is hatched or
dashed besides. Error bars are k = 2.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.energy_report.words import MEASURED, SHARED

Row = dict[str, Any]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
PHASES = ("idle", "receive", "decode", "train", "encode", "upload", "prune")
WIDTH_IN, HEIGHT_IN = 7.2, 3.8
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}


def svg(figure: Figure, salt: str) -> str:
    """Return a figure as SVG text, the same for the same numbers."""
    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def panels_of(count: int, height_in: float = HEIGHT_IN) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, one below the other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in * count), layout="constrained")
        axes = figure.subplots(count, 1, squeeze=False)
    return figure, [row[0] for row in axes]


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows in groups of one kind and scope: only those compare."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["kind"], row["scope"]), []).append(row)
    return list(found.values())


def style(kind: str) -> str:
    """Return the line of a kind: dashed where nothing was measured."""
    return "-" if kind in (MEASURED, SHARED) else "--"


def phase_colour(phase: str) -> str:
    """One colour for each phase, in all figures."""
    known = dict(zip(PHASES, ("#999999", *COLOURS), strict=False))
    return known.get(phase, COLOURS[-1])


def accuracy(runs: Sequence[Row], curve: Sequence[Row], over: str) -> str | None:
    """Draw accuracy over "energy_j", a panel for each kind and scope, or over "bytes".

    None if there is nothing to draw.
    """
    usable = {
        run["run"]: [
            p for p in curve if p["run"] == run["run"] and p["accuracy"] is not None and p[over] is not None
        ]
        for run in runs
    }
    shown = [run for run in runs if usable[run["run"]]]
    if not shown:
        return None
    has_joules = over == "energy_j"
    panels = groups(shown) if has_joules else [shown]
    figure, axes = panels_of(len(panels))
    for panel, axis in zip(panels, axes, strict=True):
        for run in panel:
            points = usable[run["run"]]
            axis.errorbar(
                [point[over] / (1 if has_joules else 1e6) for point in points],
                [100 * point["accuracy"] for point in points],
                xerr=[point["uncertainty_j"] for point in points] if has_joules else None,
                label=f"{run['run']} ({run['method']})",
                color=COLOURS[list(runs).index(run) % len(COLOURS)],
                linestyle=style(run["kind"]) if has_joules else "-",
                marker="o",
                markersize=3,
                elinewidth=0.6,
                capsize=2,
            )
        words = f"joules, all clients ({panel[0]['kind']}, {panel[0]['scope']})"
        axis.set(xlabel=words if has_joules else "megabytes, up and down", ylabel="test accuracy, %")
        axis.set_xlim(left=0)
        axis.legend(fontsize=8)
    return svg(figure, f"accuracy-{over}")


def boards(rows: Sequence[Row]) -> str | None:
    """Draw boards side by side: J/step, J/round, mean and peak watts; a row of panels for each kind and scope."""
    shown = [row for row in rows if row["round_j"] is not None]
    if not shown:
        return None
    panels = groups(shown)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    heights = [1.0 + 0.28 * len(panel) for panel in panels]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 3, squeeze=False, sharey="row", height_ratios=heights)
    for panel, axes in zip(panels, grid, strict=True):
        y = np.arange(len(panel))
        looks: dict[str, Any] = {
            "color": [COLOURS[runs.index(row["run"]) % len(COLOURS)] for row in panel],
            "hatch": "" if panel[0]["kind"] in (MEASURED, SHARED) else "///",
            "edgecolor": "white",
            "linewidth": 0,
        }
        for axis, name in zip(axes, ("step", "round"), strict=False):
            # What is unknown has no bar: the table says so.
            values = [row[f"{name}_j"] or 0.0 for row in panel]
            errors = [row[f"{name}_uncertainty_j"] or 0.0 for row in panel]
            axis.barh(y, values, xerr=errors, capsize=2, ecolor="#444444", **looks)
            axis.set(xlabel=f"J for each {name}")
            axis.set_xlim(left=0)
        axes[2].barh(y, [row["power_mean_w"] or 0.0 for row in panel], **looks)
        peaks = [(place, row["power_peak_w"]) for place, row in enumerate(panel) if row["power_peak_w"]]
        if peaks:
            axes[2].plot(
                [w for _, w in peaks], [place for place, _ in peaks], "|", color="#444444", markersize=9
            )
        axes[2].set(xlabel="W: mean, and | peak")
        axes[0].set_yticks(y, [f"{row['client_id']}, {row['run']}" for row in panel])
        axes[0].invert_yaxis()
        axes[1].set_title(f"{panel[0]['kind']}, {panel[0]['scope']}", fontsize=9)
    return svg(figure, "boards")


def phases(rows: Sequence[Row]) -> str | None:
    """Draw each run's joules by phase, a panel for each kind and scope."""
    shown = [row for row in rows if row["energy_j"] is not None and row["phase"] != "idle"]
    if not shown:
        return None
    panels = groups(shown)
    figure, axes = panels_of(len(panels), 1.2 + 0.35 * len({row["run"] for row in shown}))
    names = sorted({row["phase"] for row in shown}, key=lambda name: (*PHASES, name).index(name))
    for panel, axis in zip(panels, axes, strict=True):
        runs = list(dict.fromkeys(row["run"] for row in panel))
        left = np.zeros(len(runs))
        for name in names:
            parts = [
                sum(row["energy_j"] for row in panel if (row["run"], row["phase"]) == (run, name))
                for run in runs
            ]
            axis.barh(runs, parts, left=left, label=name, color=phase_colour(name))
            left += parts
        spread = [sum(row["uncertainty_j"] or 0.0 for row in panel if row["run"] == run) for run in runs]
        axis.errorbar(left, runs, xerr=spread, fmt="none", ecolor="#444444", capsize=3)
        axis.set(xlabel=f"joules, all clients and rounds ({panel[0]['kind']}, {panel[0]['scope']})")
        axis.set_xlim(left=0)
        axis.invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, ncols=len(names), loc="outside upper center"
    )
    return svg(figure, "phases")


def steps(rows: Sequence[Row]) -> str | None:
    """Draw a training step's seconds over density, and its joules in a panel for each kind and scope."""
    shown = [row for row in rows if row["of"] == "step"]
    if not shown:
        return None
    files = list(dict.fromkeys(row["file"] for row in shown))
    known = [row for row in shown if row["each_j"] is not None]
    panels = [("each_s", shown), *(("each_j", group) for group in groups(known))]
    figure, axes = panels_of(len(panels), 3.0)
    for axis, (key, panel) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(row["file"] for row in panel):
            own = sorted((row for row in panel if row["file"] == name), key=lambda row: float(row["density"]))
            axis.errorbar(
                [row["density"] for row in own],
                [row[key] for row in own],
                yerr=[row["each_uncertainty_j"] or 0.0 for row in own] if key == "each_j" else None,
                label=f"{name}: {own[0]['model']}, batch {own[0]['batch']}",
                color=COLOURS[files.index(name) % len(COLOURS)],
                linestyle=style(own[0]["kind"]) if key == "each_j" else "-",
                marker="o",
                markersize=3,
                capsize=2,
            )
        unit = "s" if key == "each_s" else f"J ({panel[0]['kind']}, {panel[0]['scope']})"
        axis.set(xlabel="density: share of the weights that is stored", ylabel=f"{unit} for each step")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    return svg(figure, "steps")
