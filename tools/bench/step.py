"""sparsefleet bench step: one whole training step, sparse, beside the same step of others.

A step is forward, backward and the SGD update, with pooling, loss and the runtime's overhead; batch
norm's statistics are updated on all sides. All sides take turns in one process (timing.py), so that a
change of clock meets them all. What is not installed is null, and stderr says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from device_profiles.memory import peak_rss_bytes
from protocol.layout import PRUNABLE
from protocol.sparse import Mask
from tools.bench import masks as masking
from tools.bench import memory, rivals
from tools.bench.subject import Subject, weights
from tools.bench.timing import SECONDS, Step, alternate, clock_of

RIVALS = {
    "dense_torch": rivals.torch_step,
    "dense_ort_training": rivals.ort_training_step,
    "sparseprop": rivals.sparseprop_step,
}
OURS = "dense"  # Our own graph at density 1.
# Steps of one call of the client's loop, whose beginning and end (binding weights, checking them) belong to a round
# of many steps. Shared by two steps they are 3 % of a sparse ResNet-18's and 7 % of a dense one's.
NUM_STEPS = 8
SIDES = (*RIVALS, OURS)
RATIO_OF = {
    "dense_torch": "ratio_torch",
    "dense_ort_training": "ratio_ort_training",
    "sparseprop": "ratio_sparseprop",
    OURS: "ratio_dense",
}


def measure(
    subject: Subject,
    batch_size: int,
    density: float,
    masks: str,
    threads: int,
    against: tuple[str, ...] = SIDES,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Return the measurement of one step graph at one density.

    `against` names the sides beside ours; a side that is left out or missing has null figures. Times
    are seconds of one step; `seconds` is how long each side is measured.
    """
    rng = np.random.default_rng(0)
    layout = subject.manifest.layout
    mask = masking.random_mask(layout, density, masks, rng)
    batch = subject.batch(batch_size, rng)
    pixels = {layer.weight: layer.pixels for layer in subject.layers(batch_size)}
    trainer, runtime = subject.trainer(batch, threads, NUM_STEPS)
    sparse = weights(layout, mask, rng)
    steps: dict[str, Step] = {"sparse": lambda: trainer.fit(sparse)}
    if OURS in against:
        other, _ = subject.trainer(batch, threads, NUM_STEPS)
        full = weights(layout, Mask.full(layout.size), rng)
        steps[OURS] = lambda: other.fit(full)
    task = rivals.Task(subject.manifest, mask, batch, threads)
    steps |= rivals.available(task, {name: make for name, make in RIVALS.items() if name in against})
    times = {
        side: time_s if side in RIVALS else time_s / NUM_STEPS
        for side, time_s in alternate(steps, threads, seconds).items()
    }
    found: dict[str, Any] = {
        "model": subject.manifest.model,
        "graph": subject.graph,
        "batch": batch_size,
        "density": density,
        "masks": masks,
        "threads": threads,
        "clock": clock_of(threads),
        "sparse_s": times["sparse"],
    }
    for side in SIDES:
        found[f"{side}_s"] = times.get(side)
        found[RATIO_OF[side]] = times[side] / times["sparse"] if side in times else None
    return found | {
        "flop_density": masking.flop_density(mask, layout, pixels),
        "stored_weights": mask.num_below(layout.num_prunable),
        "prunable_weights": layout.num_prunable,
        "layers": len(layout.of_role(PRUNABLE)),
        "peak_rss_bytes": memory.of_client(subject, sparse, batch_size, threads)["peak_rss_bytes"],
        "bench_peak_rss_bytes": peak_rss_bytes(),
        "isa": runtime.kernels,
        "runtime": runtime.name,
    }


def line(found: dict[str, Any]) -> str:
    """One measurement for people."""
    sides = [
        f"{side} {1e3 * found[f'{side}_s']:.2f} ms ({found[RATIO_OF[side]]:.1f}x)"
        for side in SIDES
        if found[f"{side}_s"] is not None
    ]
    return (
        f"{found['model']} batch {found['batch']}, {found['masks']} density {found['density']:g} "
        f"(FLOPs {found['flop_density']:.3f}), {found['threads']} thread(s), {found['isa']}: "
        f"sparse {1e3 * found['sparse_s']:.2f} ms; {', '.join(sides) or 'nothing to compare with'}; "
        f"client {found['peak_rss_bytes'] / 1e6:.0f} MB"
    )
