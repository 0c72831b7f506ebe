"""From which density on this device is faster dense, measured on whole steps of a small ResNet.

Each density is run with sparse kernels and with dense ones, in turn, in one process. The time of a
sparse step grows with the density, that of a dense one does not: the figure is where the lines that
fit them cross.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_client import break_even
from edge_client.break_even import NEVER, BreakEven
from edge_client.kernels import library_path
from edge_client.ort import kernel_isa
from tools.bench.masks import UNIFORM, random_mask
from tools.bench.subject import from_model, weights
from tools.bench.timing import alternate

MODEL, BATCH = "resnet8", 16
DENSITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALWAYS = 1e-9


def measure(threads: int, seconds: float) -> dict[str, Any]:
    """Return the density of equal speed, and both times at each density; `seconds` for each of them."""
    library = library_path()
    subject, rng = from_model(MODEL), np.random.default_rng(0)
    batch = subject.batch(BATCH, rng)
    layout = subject.manifest.layout
    sparse_s, dense_s = [], []
    before = break_even.current(library)
    try:
        for density in DENSITIES:
            model = weights(layout, random_mask(layout, density, UNIFORM, rng), rng)
            runtimes = {"sparse": NEVER, "dense": ALWAYS}
            steps = {}
            for name, dense_from in runtimes.items():
                break_even.use(library, dense_from)
                _, runtime = subject.trainer(batch, threads)
                runtime.bind(model)
                steps[name] = _step(runtime, batch, library, dense_from)
            found = alternate(steps, threads, seconds)
            sparse_s.append(found["sparse"])
            dense_s.append(found["dense"])
    finally:
        break_even.use(library, before)
    slope, start = np.polyfit(DENSITIES, sparse_s, 1)
    crossing = (float(np.median(dense_s)) - start) / slope if slope > 0 else NEVER
    return {
        "dense_from": round(float(np.clip(crossing, DENSITIES[0], 1.0)), 3),
        "isa": kernel_isa(library),
        "threads": threads,
        "model": subject.manifest.model,
        "densities": list(DENSITIES),
        "sparse_s": sparse_s,
        "dense_s": dense_s,
    }


def _step(runtime: Any, batch: Any, library: Path, dense_from: float) -> Any:
    def step() -> None:
        break_even.use(library, dense_from)
        runtime.step(batch)

    return step


def keep(state: Path, found: dict[str, Any]) -> Path:
    """Put the figure into a client's state folder; return the file."""
    fields = BreakEven.__struct_fields__
    return break_even.save(state, BreakEven(**{name: found[name] for name in fields}))


def lines(found: dict[str, Any]) -> list[str]:
    """Return a table for the terminal."""
    rows = zip(found["densities"], found["sparse_s"], found["dense_s"], strict=True)
    return [
        f"{'density':>8}{'sparse ms':>12}{'dense ms':>12}",
        *(f"{d:>8.2f}{1e3 * s:>12.2f}{1e3 * e:>12.2f}" for d, s, e in rows),
        f"layers run dense from density {found['dense_from']:.2f} on ({found['isa']}, {found['threads']} threads)",
    ]
