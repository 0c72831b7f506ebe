"""From which density on this device is faster dense, measured on whole steps of a small ResNet.

Each density is run with sparse kernels, with dense ones, and with Winograd's algorithm where it suits, in turn, in one
process. The time of a sparse step grows with the density, that of the dense layers does not: the figures are where the
lines that fit them cross.
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
DENSITIES = (0.2, 0.3, 0.4, 0.6, 0.75, 0.9)
ALWAYS = 1e-9
LOWEST = 0.1  # Nothing is believed of densities further from those that were measured.
KINDS = {"sparse": (NEVER, NEVER), "dense": (ALWAYS, NEVER), "winograd": (NEVER, ALWAYS)}


def measure(threads: int, seconds: float) -> dict[str, Any]:
    """Return the densities of equal speed, and the times at each density; `seconds` for each of them."""
    library = library_path()
    subject, rng = from_model(MODEL), np.random.default_rng(0)
    batch = subject.batch(BATCH, rng)
    layout = subject.manifest.layout
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    before = break_even.current(library)
    try:
        for density in DENSITIES:
            model = weights(layout, random_mask(layout, density, UNIFORM, rng), rng)
            steps = {}
            for kind, densities in KINDS.items():
                break_even.use(library, *densities)
                _, runtime = subject.trainer(batch, threads)
                runtime.bind(model)
                steps[kind] = _step(runtime, batch, library, densities)
            for kind, step_s in alternate(steps, threads, seconds).items():
                found[kind].append(step_s)
    finally:
        break_even.use(library, *before)
    return {
        "dense_from": _crossing(found["sparse"], found["dense"]),
        "winograd_from": _crossing(found["sparse"], found["winograd"]),
        "isa": kernel_isa(library),
        "threads": threads,
        "model": subject.manifest.model,
        "densities": list(DENSITIES),
        **{f"{kind}_s": times for kind, times in found.items()},
    }


def _crossing(sparse_s: list[float], other_s: list[float]) -> float:
    """Return where the others take as long: the layers that stay sparse there grow with the density, too."""
    slope, start = np.polyfit(DENSITIES, np.subtract(sparse_s, other_s), 1)
    return round(float(np.clip(-start / slope, LOWEST, 1.0)), 3) if slope > 0 else NEVER


def _step(runtime: Any, batch: Any, library: Path, densities: tuple[float, float]) -> Any:
    def step() -> None:
        break_even.use(library, *densities)
        runtime.step(batch)

    return step


def keep(state: Path, found: dict[str, Any]) -> Path:
    """Put the figure into a client's state folder; return the file."""
    fields = BreakEven.__struct_fields__
    return break_even.save(state, BreakEven(**{name: found[name] for name in fields}))


def lines(found: dict[str, Any]) -> list[str]:
    """Return a table for the terminal."""
    rows = zip(found["densities"], *(found[f"{kind}_s"] for kind in KINDS), strict=True)
    return [
        f"{'density':>8}" + "".join(f"{kind + ' ms':>14}" for kind in KINDS),
        *(
            f"{density:>8.2f}" + "".join(f"{1e3 * step_s:>14.2f}" for step_s in times)
            for density, *times in rows
        ),
        f"layers run dense from density {found['dense_from']:.2f} on, those that Winograd's algorithm suits "
        f"from {found['winograd_from']:.2f} on ({found['isa']}, {found['threads']} threads)",
    ]
