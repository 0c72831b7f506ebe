"""sparsefleet energy profile: what this board takes, alone: idle, steps at several densities, codec.

One file, without coordinator, torch or onnx: the client's own loop on the packaged step graphs, with
random weights and examples. Each part runs for `seconds`, so that a slow sensor can tell it; figures
of one call are those of the part over its calls.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from device_profiles import Profile, machine_name
from device_profiles.memory import peak_rss_bytes
from edge_client.energy.meter import Meter
from edge_client.energy.power_mode import power_mode
from protocol import codec
from protocol.messages import Phase
from protocol.sparse import Mask, SparseVector
from tools.bench.masks import UNIFORM, random_mask
from tools.bench.subject import Subject, weights

SCHEMA = "sparsefleet-energy-profile/1"
DENSITIES = (1.0, 0.1, 0.05, 0.02)
STEPS = 4  # Of one call of the client's loop: its beginning and end belong to a round of many.


def measure(
    meter: Meter,
    profile: Profile,
    subject: Subject,
    batch_size: int,
    densities: Sequence[float],
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Return the board's energy profile, as `--json` prints it."""
    idle = meter.measure_idle(seconds)
    rng = np.random.default_rng(0)
    batch, layout = subject.batch(batch_size, rng), subject.manifest.layout
    parts: list[dict[str, Any]] = []
    kernels = runtime_name = ""
    for density in densities:
        mask = Mask.full(layout.size) if density >= 1 else random_mask(layout, density, UNIFORM, rng)
        vector = weights(layout, mask, rng)
        trainer, runtime = subject.trainer(batch, threads, STEPS)
        kernels, runtime_name = runtime.kernels, runtime.name
        trained = trainer.fit(vector)  # Plans and buffers are made.
        step = _repeat(meter, "train", seconds, lambda: trainer.fit(vector))  # noqa: B023  Called at once.
        parts.append(_each(step[0], step[1] * STEPS, "step", density=density, examples=batch_size))
        parts += _codec(meter, seconds, trained, layout.num_prunable, layout.size, density)
    return {
        "schema": SCHEMA,
        "machine": machine_name(),
        "system": platform.platform(),
        "profile": profile.name,
        "power_mode": power_mode(),
        "source": dataclasses.asdict(meter.source.about),
        "idle": dataclasses.asdict(idle) if idle else None,
        "model": subject.manifest.model,
        "num_parameters": layout.num_trainable,
        "batch": batch_size,
        "threads": threads,
        "runtime": runtime_name,
        "kernels": kernels,
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "zstandard")},
        "peak_rss_bytes": peak_rss_bytes(),
        "parts": parts,
    }


def _codec(
    meter: Meter, seconds: float, vector: SparseVector, num_prunable: int, size: int, density: float
) -> list[dict[str, Any]]:
    """Measure a body with its indices both ways, and one that only carries values, as uploads do."""
    known = {vector.mask.digest}
    whole = codec.encode(vector, num_prunable, "f16")
    values = codec.encode(vector, num_prunable, "f16", known)
    parts: list[tuple[str, str, bytes, Callable[[], object]]] = [
        ("encode", "body", whole, lambda: codec.encode(vector, num_prunable, "f16")),
        ("decode", "body", whole, lambda: codec.decode(whole, size, num_prunable, {})),
        ("encode", "upload", values, lambda: codec.encode(vector, num_prunable, "f16", known)),
    ]
    found = []
    for name, what, body, call in parts:
        phase, count = _repeat(meter, name, seconds, call)
        found.append(_each(phase, count, what, density=density, num_bytes=len(body)))
    return found


def _repeat(meter: Meter, name: str, seconds: float, call: Callable[[], object]) -> tuple[Phase, int]:
    """Call for so many seconds; return the phase and how often."""
    count = 0
    with meter.phase(name):
        until_s = meter.now_s() + seconds
        while count == 0 or meter.now_s() < until_s:
            call()
            count += 1
    (phase,) = meter.take()
    return phase, count


def _each(phase: Phase, count: int, what: str, **more: float) -> dict[str, Any]:
    """Return a part: the phase, and what one of its calls took."""
    each = {
        f"{name}_each": None if value is None else value / count
        for name, value in (
            ("duration_s", phase.duration_s),
            ("cpu_s", phase.cpu_s),
            ("energy_j", phase.energy_j),
            ("uncertainty_j", phase.uncertainty_j),
            ("energy_net_j", phase.energy_net_j),
            ("net_uncertainty_j", phase.net_uncertainty_j),
        )
    }
    return {"of": what, "count": count, **more, **each, **msgspec.to_builtins(phase)}


def lines(found: dict[str, Any]) -> str:
    """The profile for people."""
    idle = found["idle"]
    waiting = f"{idle['power_w']:.2f} ± {idle['uncertainty_w']:.2f} W" if idle else "not measured"
    told = [
        f"{found['machine'] or 'this machine'}, {found['source']['name']} ({found['source']['scope']}), idle {waiting}",
        f"{found['model']} batch {found['batch']}, {found['threads']} thread(s), {found['kernels']}",
    ]
    for part in found["parts"]:
        energy = part["energy_j_each"]
        joules = "unknown" if energy is None else f"{energy:.3g} ± {part['uncertainty_j_each']:.1g} J"
        net = "" if part["energy_net_j_each"] is None else f", net {part['energy_net_j_each']:.3g} J"
        told.append(
            f"  {part['phase']:6} {part['of']:6} density {part['density']:<5g} {1e3 * part['duration_s_each']:9.2f} ms"
            f"  {joules}{net}{'  ' + part['throttling'] if part['throttling'] else ''}"
        )
    return "\n".join(told)
