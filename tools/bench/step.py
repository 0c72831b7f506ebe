"""sparsefleet bench step: one whole training step, sparse, beside dense PyTorch in the same process.

A step is forward, backward and the SGD update, with pooling, loss and the runtime's overhead. Times
are CPU seconds of this process (a busy neighbour does not count), medians over repetitions that
alternate between the two, so that a change of clock meets both. Without torch the dense side is
null. Batch norm's statistics are updated on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_profiles.memory import peak_rss_bytes
from edge_client.kernels import library_path
from edge_client.runtime import PortableRuntime
from edge_client.session import Trainer
from protocol import artifact as artifacts
from protocol.artifact import Manifest
from protocol.examples import Examples
from protocol.layout import PRUNABLE, Layout
from protocol.messages import Training
from protocol.sparse import Mask, SparseVector, top_k

USUAL = (("mlp", 64), ("lenet", 64), ("resnet18", 16))
DENSITIES = (0.1, 0.05, 0.02)
SECONDS = 4.0  # For each measurement; at least MIN_REPETITIONS.
MIN_REPETITIONS = 5


def bench(options: argparse.Namespace) -> int:
    """Measure what was asked for; one JSON object a line with --json."""
    models = [(options.model, options.batch)] if options.model else list(USUAL)
    densities = [options.density] if options.density else list(DENSITIES)
    for model, batch in models:
        for density in densities:
            found = measure(model, batch, density, options.threads)
            print(json.dumps(found) if options.json else line(found), flush=True)
    return 0


def measure(model: str, batch: int, density: float, threads: int) -> dict[str, Any]:
    """Return the measurement of one model at one density, with uniform random masks."""
    from export.export import export_module
    from export.models import DEFAULT_INPUT_SHAPE, builder

    input_shape = DEFAULT_INPUT_SHAPE[model]
    module = builder(model)(input_shape, 10)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *input_shape)).astype(np.float32)
    y = rng.integers(0, 10, batch)
    with tempfile.TemporaryDirectory() as folder:
        manifest = export_module(
            module, model, input_shape, Path(folder) / "artifact", library_path()
        ).manifest
        sparse, runtime = _sparse_step(manifest, Path(folder) / "artifact", density, threads, x, y, rng)
        dense = _torch_step(module, threads, x, y)
        times = alternate({"sparse_s": sparse, "dense_torch_s": dense})
    return {
        "model": model,
        "batch": batch,
        "density": density,
        "masks": "uniform",
        "threads": threads,
        **times,
        "ratio_torch": times["dense_torch_s"] / times["sparse_s"],
        "peak_rss_bytes": peak_rss_bytes(),
        "isa": runtime.kernels,
        "runtime": runtime.name,
    }


def uniform_mask(layout: Layout, density: float, rng: np.random.Generator) -> Mask:
    """The same density in every prunable tensor."""
    parts = [
        top_k(rng.random(piece.size), max(1, round(density * piece.size))) + piece.offset
        for piece in layout.of_role(PRUNABLE)
    ]
    return Mask.of_model(np.concatenate(parts), layout)


def _sparse_step(
    manifest: Manifest,
    folder: Path,
    density: float,
    threads: int,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Callable[[], object], PortableRuntime]:
    """The client's own training loop over one batch."""
    runtime = PortableRuntime(manifest, folder, library_path(), threads)
    flat = artifacts.weights((folder / artifacts.INITIAL).read_bytes(), manifest.layout)
    model = SparseVector.of(flat, uniform_mask(manifest.layout, density, rng))
    training = Training(local_epochs=1, batch_size=len(y), learning_rate=0.01, momentum=0.9)
    trainer = Trainer(manifest, runtime, Examples(x, y), training, rng)
    return lambda: trainer.fit(model), runtime


def _torch_step(
    module: Any, threads: int, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]
) -> Callable[[], object]:
    """PyTorch's usual training step."""
    import torch

    torch.set_num_threads(threads)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    module.train()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def alternate(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median CPU seconds of each step, measured in turn."""
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    until_s = time.monotonic() + SECONDS * len(steps)
    while time.monotonic() < until_s or len(next(iter(found.values()))) < MIN_REPETITIONS:
        for name, step in steps.items():
            begin_s = time.process_time()
            step()
            found[name].append(time.process_time() - begin_s)
    return {name: statistics.median(values) for name, values in found.items()}


def line(found: dict[str, Any]) -> str:
    """One measurement for people."""
    return (
        f"{found['model']} batch {found['batch']}, density {found['density']:g}, {found['threads']} thread(s), "
        f"{found['isa']}: sparse {1e3 * found['sparse_s']:.2f} ms, torch {1e3 * found['dense_torch_s']:.1f} ms, "
        f"{found['ratio_torch']:.1f}x"
    )
