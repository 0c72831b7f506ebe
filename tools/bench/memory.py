"""sparsefleet bench memory: the peak resident memory of a client process that trains a model.

Each model trains in a fresh process of its own, which imports what `sparsefleet client` imports and
no torch. It reads the sparse model from a file, as a client receives it: making masks here would be a
peak that no client has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from device_profiles.memory import peak_rss_bytes
from edge_client.memory import plan
from protocol import artifact as artifacts
from protocol.artifact import MANIFEST
from protocol.errors import SparsefleetError
from protocol.sparse import Mask, SparseVector
from tools.bench import masks as masking
from tools.bench.subject import Subject, weights

NUM_STEPS = 3  # The first makes all plans and buffers; the others show that nothing grows.


def measure(
    subject: Subject, batch_size: int, density: float, masks: str, threads: int, python: str = sys.executable
) -> dict[str, Any]:
    """Return the peak of one model at one density, in a process of this interpreter."""
    rng = np.random.default_rng(0)
    layout = subject.manifest.layout
    sparse = weights(layout, masking.random_mask(layout, density, masks, rng), rng)
    return {
        "model": subject.manifest.model,
        "batch": batch_size,
        "density": density,
        "masks": masks,
        "threads": threads,
        **of_client(subject, sparse, batch_size, threads, python),
    }


def of_client(
    subject: Subject, model: SparseVector, batch_size: int, threads: int, python: str = sys.executable
) -> dict[str, Any]:
    """Train a sparse model in a fresh process; return what it says of itself, and what was planned.

    peak_rss_bytes: at the end.  idle_rss_bytes: before the graph was opened, everything imported.
    planned_rss_bytes: by edge_client/memory.py; null where the artifact does not say.

    Raises:
        SparsefleetError: the process failed; its last words are in the text.
    """
    with tempfile.TemporaryDirectory() as folder:
        received = Path(folder) / "model.npz"
        np.savez(received, indices=model.mask.indices, values=model.values)
        command = [python, "-m", "tools.bench.memory", str(subject.folder.resolve()), str(received)]
        command += [str(batch_size), str(threads)]
        root = Path(__file__).resolve().parent.parent.parent
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise SparsefleetError(f"training {subject.manifest.model} for its memory failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    planned = plan(subject.manifest, model.mask.nnz, batch_size, num_examples=batch_size)
    return {**found, "planned_rss_bytes": planned.peak_bytes if planned else None}


def train(folder: Path, received: Path, batch_size: int, threads: int) -> dict[str, Any]:
    """Be that process."""
    import tools.client  # noqa: F401  What `sparsefleet client` loads belongs to its memory.

    manifest = artifacts.parse((folder / MANIFEST).read_bytes())
    idle_bytes = peak_rss_bytes()
    with np.load(received) as arrays:
        model = SparseVector(Mask(arrays["indices"], manifest.layout.size), arrays["values"])
    subject = Subject(manifest, folder, "artifact")
    trainer, runtime = subject.trainer(subject.batch(batch_size, np.random.default_rng(0)), threads)
    for _ in range(NUM_STEPS):
        model = trainer.fit(model)
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "idle_rss_bytes": idle_bytes,
        "isa": runtime.kernels,
        "runtime": runtime.name,
        "torch_loaded": "torch" in sys.modules,
    }


def line(found: dict[str, Any]) -> str:
    """One measurement for people."""
    planned = found["planned_rss_bytes"]
    return (
        f"{found['model']} batch {found['batch']}, {found['masks']} density {found['density']:g}: "
        f"peak {found['peak_rss_bytes'] / 1e6:.0f} MB, {found['idle_rss_bytes'] / 1e6:.0f} MB of it before the graph "
        f"is open; planned {f'{planned / 1e6:.0f} MB' if planned else 'not known'} ({found['runtime']})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("received", type=Path)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    print(json.dumps(train(options.folder, options.received, options.batch_size, options.threads)))
