"""What is measured: a step graph with its layout, and random weights and masks for it.

--artifact FOLDER      that artifact, whatever made it
--model NAME           exported now, where torch is; elsewhere the graph that ships with the package
                       (graphs.py), so that a board needs neither torch nor a laptop
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.kernels import library_path
from edge_client.ort import onnxruntime, session_options
from edge_client.runtime import PortableRuntime
from edge_client.session import Trainer
from protocol import artifact as artifacts
from protocol.artifact import MANIFEST, STEP, Manifest
from protocol.errors import ArtifactError
from protocol.examples import Examples
from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout
from protocol.messages import Training
from protocol.sparse import Mask, SparseVector, count_below
from tools.bench import graphs, wire
from tools.bench.timing import say_once

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
LEARNING_RATE, MOMENTUM = 0.01, 0.9  # Of every engine.


@dataclass(frozen=True)
class Layer:
    """One prunable layer as the graph runs it: attributes, and blocked shapes for one batch.

    Forward and gradient differ in the halos of what they read and write.
    """

    weight: str
    shape: tuple[int, ...]
    attributes: dict[str, int]
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    gradient_attributes: dict[str, int]
    dy_shape: tuple[int, ...]
    dx_shape: tuple[int, ...] | None  # None: nobody wants it, of the network's first layer.

    @property
    def pixels(self) -> int:
        """Output pixels of one example: how often each stored weight is multiplied."""
        halo = self.attributes.get("out_halo", 0)
        return math.prod(n - halo for n in self.y_shape[2:4])


@dataclass(frozen=True)
class Subject:
    """A step graph in a folder."""

    manifest: Manifest
    folder: Path
    graph: str  # "exported", "packaged" or "artifact"

    def batch(self, size: int, rng: np.random.Generator) -> Batch:
        """Return random examples of the model's input shape, and labels."""
        x = rng.standard_normal((size, *self.manifest.input_shape)).astype(np.float32)
        return x, rng.integers(0, self.manifest.num_classes, size)

    def trainer(
        self, batch: Batch, threads: int, num_steps: int = 1, spin: bool = False
    ) -> tuple[Trainer, PortableRuntime]:
        """The client's own training loop, on the portable runtime; `fit` takes so many steps on one batch."""
        runtime = PortableRuntime(self.manifest, self.folder, library_path(), threads, spin=spin)
        training = Training(
            local_epochs=num_steps,
            batch_size=len(batch[1]),
            learning_rate=LEARNING_RATE,
            momentum=MOMENTUM,
        )
        rng = np.random.default_rng(0)
        return Trainer(self.manifest, runtime, Examples(*batch), training, rng), runtime

    def layers(self, batch_size: int) -> list[Layer]:
        """Return the prunable layers, in the graph's order.

        One step with a single weight in each tells the shapes: what lies between the layers is the
        graph's own affair.

        Raises:
            ArtifactError: a prunable weight without a node that applies it and one that is its gradient.
        """
        step = (self.folder / STEP).read_bytes()
        forward: dict[str, wire.Node] = {}
        gradient: dict[str, wire.Node] = {}
        names = {piece.name for piece in self.manifest.layout.of_role(PRUNABLE)}
        for node in wire.nodes(step):
            readers = gradient if node.op_type.endswith("Grad") else forward
            for name in names & set(node.inputs):
                readers.setdefault(name, node)
        missing = sorted(names - (forward.keys() & gradient.keys()))
        if missing:
            raise ArtifactError(f"{self.folder / STEP} has no layer and gradient of {', '.join(missing)}")
        ends = [name for node in forward.values() for name in (node.inputs[0], node.outputs[0])]
        ends += [name for node in gradient.values() for name in (node.inputs[0], node.outputs[0]) if name]
        shapes = self._shapes(step, list(dict.fromkeys(ends)), batch_size)
        return [
            Layer(
                weight=name,
                shape=self.manifest.layout.by_name[name].shape,
                attributes=_integers(node),
                x_shape=shapes[node.inputs[0]],
                y_shape=shapes[node.outputs[0]],
                gradient_attributes=_integers(gradient[name]),
                dy_shape=shapes[gradient[name].inputs[0]],
                dx_shape=shapes.get(gradient[name].outputs[0]),
            )
            for name, node in forward.items()
        ]

    def _shapes(self, step: bytes, names: list[str], batch_size: int) -> dict[str, tuple[int, ...]]:
        """Run the step once and return the shapes of values inside it."""
        session = self._session(wire.with_outputs(step, [wire.Value(name, wire.FLOAT) for name in names]))
        x, labels = self.batch(batch_size, np.random.default_rng(0))
        feeds: dict[str, Any] = {"x": x, "labels": labels, "temperature": np.ones((), np.float32)}
        for tensor in session.get_inputs():
            if tensor.name not in feeds:  # A free dimension is the number of stored weights.
                shape = [n if isinstance(n, int) else 1 for n in tensor.shape]
                is_index = tensor.type == "tensor(int32)"
                feeds[tensor.name] = np.zeros(shape, np.int32) if is_index else np.ones(shape, np.float32)
        found = session.run(names, feeds)
        return {name: value.shape for name, value in zip(names, found, strict=True)}

    def _session(self, step: bytes) -> Any:
        return onnxruntime().InferenceSession(
            step, session_options(library_path(), 1), providers=["CPUExecutionProvider"]
        )


def _integers(node: wire.Node) -> dict[str, int]:
    return {name: value for name, value in node.attributes.items() if isinstance(value, int)}


def from_artifact(folder: Path) -> Subject:
    """Open an artifact folder.

    Raises:
        ArtifactError: it is damaged or incomplete.
    """
    return Subject(artifacts.read(folder), folder, "artifact")


@functools.cache
def from_model(model: str) -> Subject:
    """Export a model, or unpack its packaged graph where torch or the exporter is missing.

    Raises:
        ConfigError: no such model.
        ArtifactError: it is not built in, and nothing here can export it.
    """
    try:
        from export.export import export_model
        from export.models import input_shape
    except ImportError as error:
        packaged = from_package(model)
        say_once(f"the packaged graph of {model} is measured, since it cannot be exported here: {error}")
        return packaged
    made = export_model(model, input_shape(model, None), 10, _scratch() / "artifact", library_path())
    return Subject(made.manifest, made.folder, "exported")


def from_package(model: str) -> Subject:
    """Unpack the graph that ships with the package.

    Raises:
        ConfigError: no graph of that name is packaged.
    """
    manifest, step = graphs.read(model)
    folder = _scratch()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / STEP).write_bytes(step)
    return Subject(artifacts.parse(manifest), folder, "packaged")


def _scratch() -> Path:
    """Return a folder that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="sparsefleet-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def weights(layout: Layout, mask: Mask, rng: np.random.Generator) -> SparseVector:
    """Return stored values by He's rule for ReLU networks (He et al., 2015), norms and biases at rest.

    Only stored values are ever made: a dense vector would be the peak of a small board's memory.
    """
    values = np.zeros(mask.nnz, np.float32)
    for piece in layout.pieces:
        begin, end = count_below(mask.indices, [piece.offset, piece.end])
        if piece.role == PRUNABLE:
            fan_in = piece.size / piece.shape[0]
            scale = np.float32(np.sqrt(2.0 / fan_in))
            values[begin:end] = scale * rng.standard_normal(end - begin, dtype=np.float32)
        elif piece.role == DENSE:
            values[begin:end] = 0.0 if piece.name.endswith("bias") else 1.0
        elif piece.role == STATISTIC:
            values[begin:end] = 0.0 if piece.name.endswith("mean") else 1.0
    return SparseVector(mask, values)
