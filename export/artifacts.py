"""The four artifacts of ONNX Runtime's training API, with our ops in them.

`generate` calls onnxruntime.training.artifacts.generate_artifacts and then mends what the
generator cannot do: attributes of gradient nodes, stored values of any length, and batch norm in
the evaluation graph.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.training import artifacts as ort_artifacts
from onnxruntime.training.onnxblock import _graph_utils

from export.gradients import copy_attributes, register
from export.graph import DOMAIN, Converted
from export.lower import free_nnz
from protocol.artifact import CHECKPOINT, CROSS_ENTROPY, EVAL_MODEL, MSE, OPTIMIZER_MODEL, TRAINING_MODEL
from protocol.layout import STATISTIC

LOSS_TYPES = {
    CROSS_ENTROPY: ort_artifacts.LossType.CrossEntropyLoss,
    MSE: ort_artifacts.LossType.MSELoss,
}


@dataclass(frozen=True)
class TrainingArtifacts:
    """The generated files, in memory."""

    training: onnx.ModelProto
    evaluation: onnx.ModelProto
    optimizer: bytes
    checkpoint: bytes

    def files(self) -> dict[str, bytes]:
        """Contents by file name."""
        return {
            TRAINING_MODEL: self.training.SerializeToString(),
            EVAL_MODEL: self.evaluation.SerializeToString(),
            OPTIMIZER_MODEL: self.optimizer,
            CHECKPOINT: self.checkpoint,
        }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the gradient builder, which narrates every graph transformer on the process's stderr.

    Its log level cannot be set from Python. What goes wrong comes as an exception all the same.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  A descriptor is needed, not a path.
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def generate(converted: Converted, library: Path, loss: str = CROSS_ENTROPY) -> TrainingArtifacts:
    """Return training, evaluation and optimizer graphs and the checkpoint of the dense model."""
    register()
    # It numbers names through the whole process; an artifact must not depend on what was exported before it.
    _graph_utils._GRAPH_TOKEN = 0
    layout = converted.layout
    statistics = [p.name for p in layout.of_role(STATISTIC)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        ort_artifacts.generate_artifacts(
            converted.model,
            requires_grad=[p.name for p in layout.pieces if p.role != STATISTIC],
            frozen_params=statistics,
            loss=LOSS_TYPES[loss],
            optimizer=ort_artifacts.OptimType.SGD,
            artifact_directory=folder,
            custom_op_library=library,
            additional_output_names=[f"{name}.batch" for name in statistics] or None,
        )
        training = onnx.load(f"{folder}/training_model.onnx")
        evaluation = onnx.load(f"{folder}/eval_model.onnx")
        optimizer = Path(folder, "optimizer_model.onnx").read_bytes()
        checkpoint = Path(folder, "checkpoint").read_bytes()
    copy_attributes(training)
    for model in (training, evaluation):
        free_nnz(model, layout)
    for node in evaluation.graph.node:
        if node.domain == DOMAIN and node.op_type == "BatchNorm":
            next(a for a in node.attribute if a.name == "training").i = 0
    return TrainingArtifacts(training, evaluation, optimizer, checkpoint)
