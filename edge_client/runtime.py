"""One training step of an artifact, on ONNX Runtime.

A runtime owns two flat buffers over the stored entries of a model (protocol/layout.py):

    values     what the graph reads     trained weights and statistics, updated in place
    gradient   what the graph writes    gradients, and the batch's statistics in the statistics part

so that an optimizer step is arithmetic on two arrays, and no weight is copied between steps.

    PortableRuntime   a step graph on any onnxruntime: what boards run
    ModuleRuntime     training_model.onnx through onnxruntime.training.api.Module, where the
                      training build is installed (module_runtime.py)

They give the same numbers (tests compare them). `open_runtime` never takes another than was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_client.bindings import Pruning, Slices, aligned
from edge_client.fixed_indices import FixedIndices
from edge_client.limits import Watchdog
from edge_client.module_runtime import ModuleRuntime
from edge_client.ort import MODULE, PORTABLE, installed_package, kernel_isa, onnxruntime, session_options
from protocol.artifact import (
    EVAL_MODEL,
    OPTIMIZER_MODEL,
    STEP,
    STEP_COMPRESSED,
    STEP_HALF,
    TRAINING_MODEL,
    Manifest,
)
from protocol.errors import ArtifactError, OverBudget, RuntimeMissing
from protocol.graphs import check_graph
from protocol.layout import PRUNABLE, STATISTIC, Vector
from protocol.method import Batch
from protocol.sparse import Mask, SparseVector

# How activations wait for the backward pass: as they are; without their zeros; at half precision.
FULL, COMPRESSED, HALF = "full", "compressed", "half"
GRAPHS = {FULL: STEP, COMPRESSED: STEP_COMPRESSED, HALF: STEP_HALF}


def files_of(kind: str, saved: str = FULL) -> tuple[str, ...]:
    """Files of the artifact that a runtime reads: a board fetches no others."""
    return (GRAPHS[saved],) if kind == PORTABLE else (TRAINING_MODEL, EVAL_MODEL, OPTIMIZER_MODEL)


class Runtime(Protocol):
    """A training step with bound weights."""

    name: str
    kernels: str
    values: Vector
    gradient: Vector

    def bind(self, model: SparseVector) -> None:
        """Take a copy of the model into `values` and point the graph at it. A new mask is no new graph."""

    def step(self, batch: Batch, temperature: float = 1.0) -> float:
        """Run forward and backward at `values`, fill `gradient`, return the mean loss.

        Raises:
            ArtifactError: the graph refused the inputs; ONNX Runtime's words are in the text.
            OverBudget: it lasted longer than the device allows.
        """

    def prune_saved(self, keep: Mapping[str, float]) -> None:
        """Keep only the largest of each named layer's saved input, from the next step on; {} keeps all.

        Raises:
            ArtifactError: this runtime was not opened with compressed activations.
        """


@dataclass(frozen=True)
class Backend:
    """What runs a client's steps: ONNX Runtime on a device; the lab may bring another."""

    name: str  # As the coordinator is told.
    open: Callable[
        [Manifest, Path, str], Runtime
    ]  # For an artifact, its folder and how activations are saved.


def onnx_backend(
    kind: str, library: Path, threads: int, step_time_s: float = 0.0, spin: bool = False
) -> Backend:
    """Return the one of devices; see `open_runtime`. Its name, which reports carry, says where threads spin."""
    return Backend(
        f"{installed_package()} {kind}{', threads spin' if spin else ''}",
        lambda manifest, folder, saved: open_runtime(
            kind, manifest, folder, library, threads, saved, step_time_s, spin
        ),
    )


def open_runtime(
    kind: str,
    manifest: Manifest,
    folder: Path,
    library: Path,
    threads: int,
    saved: str = FULL,
    step_time_s: float = 0.0,
    spin: bool = False,
) -> Runtime:
    """Return the runtime that was asked for. A portable one ends steps that last longer than `step_time_s`; 0: none.

    `spin`: see session_options.

    Raises:
        ArtifactError: a graph has more than arithmetic (protocol/graphs.py), or is refused by onnxruntime.
        RuntimeMissing: it is not installed, cannot load the op library, or cannot save activations so.
    """
    for name in files_of(kind, saved):
        check_graph(name, (folder / name).read_bytes())
    if kind == PORTABLE:
        return PortableRuntime(manifest, folder, library, threads, saved, step_time_s, spin)
    if kind == MODULE and saved != FULL:
        raise RuntimeMissing(f"the runtime {MODULE!r} keeps activations as they are; use {PORTABLE!r}")
    if kind == MODULE:
        return ModuleRuntime(manifest, folder, library, threads, spin)
    raise RuntimeMissing(f"unknown runtime {kind!r}; it is {PORTABLE!r} or {MODULE!r}")


class PortableRuntime:
    """A step graph with inputs and outputs bound to our buffers."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        library: Path,
        threads: int,
        saved: str = FULL,
        step_time_s: float = 0.0,
        spin: bool = False,
    ) -> None:
        """Open the session.

        Raises:
            RuntimeMissing: onnxruntime cannot load the library.
            ArtifactError: onnxruntime refuses the graph.
        """
        self.name = f"{installed_package()} {PORTABLE}"
        self.kernels = kernel_isa(library)
        self._manifest, self._library, graph = manifest, library, GRAPHS[saved]
        try:
            self._session = onnxruntime().InferenceSession(
                str(folder / graph),
                session_options(library, threads, spin),
                providers=["CPUExecutionProvider"],
            )
        except RuntimeMissing:
            raise
        except Exception as error:  # See session_options.
            raise ArtifactError(f"{installed_package()} refuses {graph}: {error}") from error
        self._run_options = onnxruntime().RunOptions()
        self._watchdog = Watchdog(step_time_s, self._interrupt)
        self._loss = np.zeros((), np.float32)
        self._temperature = np.ones((), np.float32)
        given = {tensor.name for tensor in self._session.get_inputs()}
        self._pruning = Pruning([p for p in manifest.layout.pieces if f"{p.name}.keep" in given])
        self.values = self.gradient = np.empty(0, np.float32)
        self._mask: Mask | None = None

    def bind(self, model: SparseVector) -> None:
        """See Runtime."""
        if self._mask is not None and model.mask.same(self._mask):
            self.values[:] = model.values
            return
        layout = self._manifest.layout
        slices = Slices.of(model.mask, self._manifest)
        self.values, self.gradient = aligned(model.values.size), aligned(model.values.size)
        self.values[:] = model.values
        # Kept alive: the binding holds bare pointers.
        self._indices = FixedIndices(self._library, slices.indices.values())
        self._binding = self._session.io_binding()
        self._bind("input", "temperature", self._temperature)
        self._bind("output", "loss", self._loss)
        for side, name, array in self._pruning.bindings():
            self._bind(side, name, array)
        wanted = {tensor.name for tensor in self._session.get_inputs()}
        for piece in layout.pieces:
            part = slices.parts[piece.name]
            suffix = "batch" if piece.role == STATISTIC else "gradient"
            shape = (part.stop - part.start,) if piece.role == PRUNABLE else piece.shape
            self._bind("output", f"{piece.name}.{suffix}", self.gradient[part].reshape(shape))
            if piece.name in wanted:
                self._bind("input", piece.name, self.values[part].reshape(shape))
            if piece.role == PRUNABLE:
                self._bind("input", f"{piece.name}.indices", slices.indices[piece.name])
        self._mask = model.mask

    def step(self, batch: Batch, temperature: float = 1.0) -> float:
        """See Runtime."""
        x, labels = batch
        self._temperature[...] = temperature
        self._bind("input", "x", x)
        self._bind("input", "labels", labels)
        self._run_options.terminate = False
        try:
            with self._watchdog.watch():
                self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # See session_options.
            if self._watchdog.has_interrupted:
                raise OverBudget(
                    f"a training step was stopped after {self._watchdog.limit_s:g} s: this device allows no more "
                    "(limits.step_time_s)"
                ) from error
            raise ArtifactError(f"the training step failed: {error}") from error
        self._pruning.after_step()
        return float(self._loss)

    def _interrupt(self) -> None:
        """End the step that runs, before its next node."""
        self._run_options.terminate = True

    def prune_saved(self, keep: Mapping[str, float]) -> None:
        """From the next step on, keep only the largest of each layer's input for its weight gradient.

        `keep` is a share in (0, 1] by weight; layers that are not named keep all. As in SparsyFed
        (arXiv 2504.05153) a convolution's threshold is found in the next step and stays, a linear
        layer's is found in every step.

        Raises:
            ArtifactError: this runtime was not opened with compressed activations.
        """
        if not self._pruning.layers:
            raise ArtifactError(f"activations can be pruned only where they are saved {COMPRESSED} or {HALF}")
        self._pruning.keep[:] = [keep.get(piece.name, 1.0) for piece in self._pruning.layers]
        self._pruning.threshold[:] = -1.0

    def _bind(self, side: str, name: str, array: npt.NDArray[Any]) -> None:
        """Point one input or output at our memory; the caller keeps the array alive."""
        bind = self._binding.bind_input if side == "input" else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
