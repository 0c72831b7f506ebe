"""sparsefleet bench table: what the engine must reach, beside what this machine measures.

Markdown, to be pasted as it is. A cell is "measured / threshold", and says "below" or "above" where it
is missed; a cell without a figure says on stderr what was missing. The figures behind the cells go to
FOLDER/table.json with --out FOLDER.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocol import artifact as artifacts
from tools.bench import gemm, graphs, layers, masks, memory, roofline, step
from tools.bench.subject import from_artifact, from_model, weights
from tools.bench.timing import alternate

DENSITIES = (0.1, 0.05, 0.02)
LAYER_DENSITY = 0.05
RIVALS = ("dense_torch", "dense_ort_training", "sparseprop")
STRUCTURED = {0.75: 3.8, 0.94: 12.0, 0.98: 20.0}  # Parameters removed: speed-up.
LEAST_SHARE = 60.0  # Percent of the load-limited roofline.
PACKAGES = ("onnxruntime-training-cpu", "onnxruntime", "torch", "sparseprop", "numpy")


Found = tuple[float | None, str]  # A figure, and a note on it.


@dataclass
class Bench:
    """Measures on demand and keeps what it found: several rows read the same measurement."""

    seconds: float
    client_python: str
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the measurement of this name, made once."""
        if key not in self.found:
            self.found[key] = measure()
        return self.found[key]

    def step(
        self, model: str, batch: int, density: float, kind: str, against: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return a measurement of a step on one thread."""
        return self.of(
            f"step {model} {density} {kind} {' '.join(against)}",
            lambda: step.measure(from_model(model), batch, density, kind, 1, against, self.seconds),
        )


@dataclass(frozen=True)
class Row:
    """One line with a figure for each density."""

    name: str
    least: tuple[float, float, float]
    stretch: tuple[float, float, float] | None
    measure: Callable[[Bench, float], float | None]

    def line(self, bench: Bench) -> str:
        """Measure; return the line."""
        found = [
            _cell(self.measure(bench, density), least)
            for density, least in zip(DENSITIES, self.least, strict=True)
        ]
        stretch = " / ".join(f"{value:g}" for value in self.stretch) + "x" if self.stretch else ""
        return f"| {self.name} | {' | '.join(found)} | {stretch} |"


def _steps(
    model: str, batch: int, kind: str, ratio: str, against: tuple[str, ...]
) -> Callable[[Bench, float], Any]:
    return lambda bench, density: bench.step(model, batch, density, kind, against)[ratio]


def _gemm(bench: Bench, density: float) -> float | None:
    found = bench.of(f"gemm {density}", lambda: gemm.measure(1024, 64, density, 1, bench.seconds))
    ratio: float | None = found["ratio_torch"]
    return ratio


TORCH = ("dense_torch",)
ROWS = (
    Row(
        "ResNet-18 b16, uniform, against dense torch",
        (5, 8, 11),
        (6, 10, 15),
        _steps("resnet18", 16, "uniform", "ratio_torch", RIVALS),
    ),
    Row(
        "VGG-19 BN b32, uniform, against dense torch",
        (5.5, 9, 12),
        (7, 11, 16),
        _steps("vgg19", 32, "uniform", "ratio_torch", TORCH),
    ),
    Row(
        "MLP 784-1024-1024-10 b64, uniform, against dense torch",
        (5, 9, 15),
        (7, 12, 22),
        _steps("mlp", 64, "uniform", "ratio_torch", TORCH),
    ),
    Row("SparseGemm 1024x1024 b64, forward + backward, against dense torch", (8, 14, 28), None, _gemm),
    Row(
        "ResNet-18 b16, uniform, against SparseProp",
        (3, 3, 3),
        (4, 4, 4),
        _steps("resnet18", 16, "uniform", "ratio_sparseprop", RIVALS),
    ),
    Row(
        "ResNet-18 b16, uniform, against onnxruntime-training dense",
        (6.5, 10, 14),
        None,
        _steps("resnet18", 16, "uniform", "ratio_ort_training", RIVALS),
    ),
    Row(
        "ResNet-18 b16, ERK, against dense torch",
        (3.2, 5.5, 8.5),
        None,
        _steps("resnet18", 16, "erk", "ratio_torch", TORCH),
    ),
)  # fmt: skip


def _dense(model: str, batch: int) -> Callable[[Bench], Found]:
    """Time of our own dense step by torch's."""

    def measure(bench: Bench) -> Found:
        ratio = bench.step(model, batch, 1.0, "uniform", TORCH)["ratio_torch"]
        return (1 / ratio if ratio else None), ""

    return measure


def _memory(model: str, batch: int) -> Callable[[Bench], Found]:
    """Peak of a client, in MB."""

    def measure(bench: Bench) -> Found:
        subject, python = from_model(model), bench.client_python
        found = bench.of(
            f"memory {model}", lambda: memory.measure(subject, batch, 0.02, "uniform", 1, python)
        )
        return found["peak_rss_bytes"] / 1e6, f" ({found['runtime']})"

    return measure


def _lowest_share(bench: Bench) -> Found:
    """The lowest percentage of the roofline among the convolutions, of all three passes together."""
    key, subject = "layers resnet18", from_model("resnet18")
    found = bench.of(key, lambda: layers.measure(subject, 16, LAYER_DENSITY, 1, bench.seconds / 4))
    shares = {row["layer"]: 100 * row["share"] for row in found["layers"] if row["op"] == "conv"}
    lowest = min(shares, key=lambda name: shares[name])
    num_reaching = sum(share >= LEAST_SHARE for share in shares.values())
    return shares[lowest], f" ({lowest}; {num_reaching} of {len(shares)} distinct layers reach it)"


def _two_threads(bench: Bench, spin: bool = False) -> Found:
    """Wall-clock time of a step on one thread by that on two, at 98 %."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_cpus < 2:
        return None, " (this process may use one CPU only)"

    def measure() -> dict[str, Any]:
        subject, rng = from_model("resnet18"), np.random.default_rng(0)
        layout = subject.manifest.layout
        model = weights(layout, masks.random_mask(layout, 0.02, "uniform", rng), rng)
        batch = subject.batch(16, rng)
        one, two = (subject.trainer(batch, threads, step.NUM_STEPS, spin)[0] for threads in (1, 2))
        steps = {"one_s": lambda: one.fit(model), "two_s": lambda: two.fit(model)}
        return dict(alternate(steps, threads=2, seconds=bench.seconds))

    found = bench.of(f"threads spin={spin}", measure)
    return found["one_s"] / found["two_s"], ""


@dataclass(frozen=True)
class Single:
    """One line with a single figure, at least or at most its limit; a note may follow the cell."""

    name: str
    measure: Callable[[Bench], Found]
    limit: float
    unit: str = "x"
    is_most: bool = False

    def line(self, bench: Bench) -> str:
        """Measure; return the line."""
        value, note = self.measure(bench)
        return f"| {self.name} | {_cell(value, self.limit, self.unit, self.is_most)}{note} |"


SINGLES = (
    Single("ResNet-18 b16 dense (density 1), its time by torch's", _dense("resnet18", 16), 1.2, is_most=True),
    Single("VGG-19 BN b32 dense (density 1), its time by torch's", _dense("vgg19", 32), 1.2, is_most=True),
    Single("MLP b64 dense (density 1), its time by torch's", _dense("mlp", 64), 1.2, is_most=True),
    Single("ResNet-18 b16 at 95 %, lowest conv layer by the load-limited roofline", _lowest_share, LEAST_SHARE, " %"),
    Single("ResNet-18 b16 at 98 %, peak resident memory of a client", _memory("resnet18", 16), 300, " MB", True),
    Single("LeNet b64 at 98 %, peak resident memory of a client", _memory("lenet", 64), 110, " MB", True),
    Single("ResNet-18 b16 at 98 %, two threads against one, wall-clock", _two_threads, 1.6),
    Single("the same, threads that spin", functools.partial(_two_threads, spin=True), 1.6),
)  # fmt: skip


def _structured(folder: Path) -> Single:
    """The line of a narrowed artifact at full density, against the whole network."""
    subject = from_artifact(folder)
    whole = artifacts.parse(graphs.read(subject.manifest.model)[0]).layout.num_trainable
    removed = 1 - subject.manifest.layout.num_trainable / whole
    least = STRUCTURED[min(STRUCTURED, key=lambda share: abs(share - removed))]

    def measure(bench: Bench) -> Found:
        found = bench.of(
            f"structured {folder}",
            lambda: step.measure(subject, 16, 1.0, "uniform", 1, TORCH, bench.seconds),
        )
        return found["ratio_torch"], ""

    name = f"{subject.manifest.model} b16, {100 * removed:.1f} % of parameters removed, against dense torch"
    return Single(f"structured {name}", measure, least)


def print_table(bench: Bench, structured: Sequence[Path], only: str, out: Path | None) -> None:
    """Measure and print, each line as soon as it is known. `only` picks rows by a part of their name."""

    def wanted(name: str) -> bool:
        return only.lower() in name.lower()

    print(_machine())
    print("\n| one thread, CPU time; measured / at least | 90 % | 95 % | 98 % | stretch |")
    print("|---|---|---|---|---|")
    for row in filter(lambda row: wanted(row.name), ROWS):
        print(row.line(bench), flush=True)
    print("\n| | measured / wanted |\n|---|---|")
    for single in (*map(_structured, structured), *SINGLES):
        if wanted(single.name):
            print(single.line(bench), flush=True)
    if not structured and wanted("structured"):
        limits = " / ".join(f"{100 * share:.0f} % {least:g}x" for share, least in STRUCTURED.items())
        print(f"| structured ResNet-18, parameters removed | - / {limits} (--structured FOLDER ...) |")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.json").write_text(json.dumps(bench.found, indent=1) + "\n")


def _cell(value: float | None, limit: float, unit: str = "x", is_most: bool = False) -> str:
    if value is None:
        return f"- / {limit:g}{unit}"
    missed = value > limit if is_most else value < limit
    word = ("above " if is_most else "below ") if missed else ""
    shown = f"{value:.0f}" if unit != "x" else f"{value:.2f}" if is_most else f"{value:.1f}"
    return f"{word}{shown} / {limit:g}{unit}"


def _machine() -> str:
    """What the figures are of: processor, instruction set, packages."""
    try:
        names = re.findall(
            r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        names = []
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} logical CPUs, {roofline.Limits.load().isa}; {', '.join(versions)}"
