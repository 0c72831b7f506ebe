"""The training build's own training API, beside the portable runtime to compare with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.bindings import Slices
from edge_client.ort import (
    MODULE,
    PORTABLE,
    TRAINING_PACKAGE,
    installed_package,
    kernel_isa,
    onnxruntime,
    session_options,
)
from protocol.artifact import CROSS_ENTROPY, EVAL_MODEL, TRAINING_MODEL, Manifest
from protocol.errors import ArtifactError, RuntimeMissing
from protocol.layout import PRUNABLE, STATISTIC, Vector
from protocol.method import Batch
from protocol.sparse import Mask, SparseVector


class ModuleRuntime:
    """The training build's Module over the native artifacts.

    Its checkpoint fixes the number of stored values, so a new mask means a new checkpoint, which
    this class writes; gradients are read back from the checkpoint state. Slower than the portable
    runtime by those copies, and there for comparison.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, library: Path, threads: int, spin: bool = False
    ) -> None:
        """Load the training API.

        Raises:
            RuntimeMissing: this is a stock build.
        """
        onnxruntime()  # Without the torch that the training API would bring.
        try:
            from onnxruntime.training import api
        except ImportError as error:
            raise RuntimeMissing(
                f"the runtime {MODULE!r} needs {TRAINING_PACKAGE} 1.19.2 and torch (x86-64 or macOS, Python 3.9-3.12); "
                f"installed is {installed_package()}. Use --runtime {PORTABLE}"
            ) from error
        self._api = api
        self.name = f"{installed_package()} Module"
        self.kernels = kernel_isa(library)
        self._manifest, self._folder = manifest, folder
        self._options = session_options(library, threads, spin)
        self.values = self.gradient = np.empty(0, np.float32)
        self._mask: Mask | None = None

    def bind(self, model: SparseVector) -> None:
        """See Runtime."""
        if self._mask is not None and model.mask.same(self._mask):
            self.values[:] = model.values
            return
        self._slices = Slices.of(model.mask, self._manifest)
        self.values = model.values.copy()
        self.gradient = np.zeros_like(self.values)
        self._state = self._fresh_state()
        self._module = self._api.Module(
            str(self._folder / TRAINING_MODEL),
            self._state,
            str(self._folder / EVAL_MODEL),
            session_options=self._options,
        )
        self._module.train()
        self._mask = model.mask

    def step(self, batch: Batch, temperature: float = 1.0) -> float:
        """See Runtime."""
        layout, slices = self._manifest.layout, self._slices
        is_classes = self._manifest.loss == CROSS_ENTROPY
        if is_classes and (batch[1].min() < 0 or batch[1].max() >= self._manifest.num_classes):
            # The training build's loss reads outside its buffer then; our own op refuses.
            raise ArtifactError(
                f"the training step failed: a label is not in 0..{self._manifest.num_classes - 1}"
            )
        for piece in layout.pieces:
            shape = (-1,) if piece.role == PRUNABLE else piece.shape
            self._state.parameters[piece.name] = self.values[slices.parts[piece.name]].reshape(shape)
        given: dict[str, npt.NDArray[Any]] = {
            "x": batch[0],
            "labels": batch[1],
            "target": batch[1],  # What the training API calls the labels of a regression.
            "temperature": np.asarray(temperature, np.float32),
            **{f"{name}.indices": value for name, value in slices.indices.items()},
        }
        try:
            outputs = self._module(*(given[name] for name in self._module.input_names()))
        except Exception as error:  # See session_options.
            raise ArtifactError(f"the training step failed: {error}") from error
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        by_name = dict(zip(self._module.output_names(), found, strict=True))
        for piece in layout.pieces:
            if piece.role == STATISTIC:
                value = by_name[f"{piece.name}.batch"]
            else:
                value = self._state.parameters[piece.name].grad
            self.gradient[slices.parts[piece.name]] = np.asarray(value).reshape(-1)
        self._module.lazy_reset_grad()
        return float(np.asarray(found[0]))

    def prune_saved(self, keep: Mapping[str, float]) -> None:
        """See Runtime."""
        raise ArtifactError(f"the runtime {MODULE!r} cannot prune activations; use {PORTABLE!r}")

    def _fresh_state(self) -> Any:
        """A checkpoint with the present number of stored values."""
        from onnxruntime.capi import _pybind_state as ort

        trained: list[bytes] = []
        frozen: list[bytes] = []
        for piece in self._manifest.layout.pieces:
            part = self._slices.parts[piece.name]
            shape = (part.stop - part.start,) if piece.role == PRUNABLE else piece.shape
            tensor = _tensor_proto(piece.name, self.values[part].reshape(shape))
            (frozen if piece.role == STATISTIC else trained).append(tensor)
        with tempfile.TemporaryDirectory() as folder:
            ort.save_checkpoint(trained, frozen, f"{folder}/checkpoint", False)
            return self._api.CheckpointState.load_checkpoint(f"{folder}/checkpoint")


def _tensor_proto(name: str, value: Vector) -> bytes:
    """A serialized onnx.TensorProto; the training build's environment has the onnx package."""
    from onnx import numpy_helper

    return bytes(numpy_helper.from_array(value, name).SerializeToString())
