"""How much memory the activations of a step take, known before anybody runs it.

ONNX Runtime is told to run nodes in the order of the file and to free a tensor behind its last reader
(edge_client/ort.py), so playing the nodes through its arena gives the peak. The sizes are those
that the ops themselves return: the graph is run once on one block of 16 examples and once on two, with
every tensor as an output. So a new op needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.arena import Arena
from export.parity import feeds, random_labels, random_mask
from export.saved import unpruned
from protocol.artifact import BLOCK_EXAMPLES, GraphMemory
from protocol.layout import Layout, Vector

# A line through the smallest counts would miss by a tenth: the arena's regions double in size.
NUM_BLOCKS = 16
DENSITY = 0.1
# The second step finds all regions, and writes to another one first than the step that took them one by one.
STEPS = 2


def graph_memory(
    step: onnx.ModelProto,
    layout: Layout,
    flat: Vector,
    input_shape: tuple[int, ...],
    num_classes: int,
    library: Path,
) -> GraphMemory:
    """Return what a step holds for batches of 1 to 16 blocks.

    The sizes of compressed activations depend on values; they are those of the initial weights and
    of normally distributed examples.
    """
    observed, names = _with_every_tensor(step)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    mask = random_mask(layout, DENSITY, rng)

    def sizes(blocks: int) -> dict[str, int]:
        x = rng.standard_normal((blocks * BLOCK_EXAMPLES, *input_shape)).astype(np.float32)
        labels = random_labels(step, len(x), num_classes, rng)
        found = session.run(names, {**feeds(layout, flat, mask, x, labels), **unpruned(step)})
        return {name: value.nbytes for name, value in zip(names, found, strict=True)}

    one, two = sizes(1), sizes(2)
    return GraphMemory(
        num_nodes=len(step.graph.node),
        activation_bytes=tuple(
            resident_bytes(step, {name: n + (blocks - 1) * (two[name] - n) for name, n in one.items()})
            for blocks in range(1, NUM_BLOCKS + 1)
        ),
    )


def resident_bytes(step: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Return what training leaves resident; tensors outside `sizes` are the caller's own."""
    last: dict[str, int] = {}
    for i, node in enumerate(step.graph.node):
        last.update(dict.fromkeys((*node.output, *node.input), i))
    ending: dict[int, list[str]] = {}
    for name, i in last.items():
        ending.setdefault(i, []).append(name)
    arena = Arena()
    for _ in range(STEPS):
        chunks = {}
        for i, node in enumerate(step.graph.node):
            for name in node.output:
                if name in sizes:
                    chunks[name] = arena.allocate(sizes[name])
            for name in ending.get(i, ()):
                if name in chunks:
                    arena.free(chunks[name])
    return arena.resident_bytes


def _with_every_tensor(step: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The graph with all tensors between nodes as outputs, and their names. Results stay the caller's."""
    observed = onnx.ModelProto()
    observed.CopyFrom(step)
    results = {output.name for output in step.graph.output}
    names = [name for node in step.graph.node for name in node.output if name and name not in results]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return observed, names
