"""What a task will take of this device's memory, before it is begun, so that a board can refuse.

Training's peak is the sum of what is resident at once:

    process       Python, NumPy, onnxruntime and this client, before anything is loaded
    session       the step graph in onnxruntime's form
    weights       what this client, its optimizer and the kernels' plans keep of each stored weight
    scratch       what dense 3x3 layers need while they run; the widest need not be one of those
    activations   from the manifest: found at export for each number of blocks (export/liveness.py)
    examples      the client's own, and one batch of them

Nothing is proportional to the dense model unless a task's mask is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from protocol.artifact import BLOCK_EXAMPLES, STEP, Manifest
from protocol.errors import OutOfMemory

# Measured, not counted: stock onnxruntime 1.31.1 (1.19.2), Python 3.11, x86-64 Linux: 67 MB (73), and 10 for the
# library of the keys.
PROCESS_BYTES = 80_000_000
# The same: 9.8 MB (7.0) for 31 nodes, 11.1 (8.3) for 93; with what the first run allocates.
SESSION_BYTES, NODE_BYTES = 10_800_000, 20_000
# Pages that are shared with what was never written.
ACTIVATION_MARGIN = 1.03

# Counted: bytes of each stored weight, by who keeps them, at the moment when most of them are alive.
WEIGHT_BYTES = {
    "received: index and value": 8,
    "received: encoded body": 6,
    "runtime: value, gradient, index within its tensor": 12,
    "optimizer: velocity": 4,
    "trained: value (before that, values in a plan's order, one layer at a time)": 4,
}
# The same where not all weights are stored; a layer that runs dense keeps less.
MASKED_WEIGHT_BYTES = {
    "plan of the forward op: offset, visits": 5,
    "plan of the gradient op: twice offset, order, visits": 14,
}


# What the thread keeps that runs layers by Winograd's algorithm (edge_client/kernels/winograd.cpp): 36 floats for each
# weight of the widest layer's block of rows, for each input of some tiles and for each output.
WINOGRAD_PLACES, WINOGRAD_ROWS, WINOGRAD_EXAMPLES = 36, 128, 4 * BLOCK_EXAMPLES
WINOGRAD_DENSITY = 0.2  # Below the guesses of all instruction sets (break_even.py).


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak, by what takes them."""

    process_bytes: int
    session_bytes: int
    weight_bytes: int
    scratch_bytes: int
    activation_bytes: int
    example_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The sum: what VmHWM, or ru_maxrss, will say of the client."""
        return sum(int(getattr(self, field.name)) for field in fields(self))

    def __str__(self) -> str:
        """The parts in words, largest unit that people read."""
        parts = (f"{f.name.removesuffix('_bytes')} {getattr(self, f.name) / 1e6:.0f}" for f in fields(self))
        return f"{self.peak_bytes / 1e6:.0f} MB ({', '.join(parts)})"


def plan(
    manifest: Manifest,
    nnz: int,
    batch_size: int,
    num_examples: int = 0,
    graph: str = STEP,
    method_floats: int = 0,
) -> Plan | None:
    """Return what training `nnz` stored weights (dense ones and statistics included) takes.

    `method_floats` is what the method holds for each of them besides (Method.device_floats).
    None if the artifact does not say: it was exported by an older version.
    """
    found = manifest.memory.get(graph)
    if found is None:
        return None
    each = sum(WEIGHT_BYTES.values())
    if nnz < manifest.layout.size:
        each += sum(MASKED_WEIGHT_BYTES.values())
    return Plan(
        process_bytes=PROCESS_BYTES,
        session_bytes=SESSION_BYTES + NODE_BYTES * found.num_nodes,
        weight_bytes=nnz * (each + 4 * method_floats),
        scratch_bytes=_scratch_bytes(manifest, nnz),
        activation_bytes=math.ceil(ACTIVATION_MARGIN * found.activations(batch_size)),
        example_bytes=4 * math.prod(manifest.input_shape) * (num_examples + batch_size),
    )


def _scratch_bytes(manifest: Manifest, nnz: int) -> int:
    if nnz < WINOGRAD_DENSITY * manifest.layout.size:
        return 0
    channels = max((max(p.shape[:2]) for p in manifest.layout.pieces if p.shape[2:] == (3, 3)), default=0)
    rows = min(channels, WINOGRAD_ROWS)
    return 4 * WINOGRAD_PLACES * (rows * channels + (rows + channels) * WINOGRAD_EXAMPLES)


def afford(planned: Plan | None, budget_bytes: int) -> None:
    """Do nothing if the plan fits into the budget, or is not known.

    Raises:
        OutOfMemory: it does not; the text has the plan's parts and what to change.
    """
    if planned is not None and planned.peak_bytes > budget_bytes:
        raise OutOfMemory(
            f"the task needs {planned}, this device has a budget of {budget_bytes / 1e6:.0f} MB: choose a smaller "
            "batch or density, or raise memory_budget_mb in the client's configuration"
        )
