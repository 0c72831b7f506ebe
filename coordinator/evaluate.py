"""Central evaluation: the global model on held-out examples. The coordinator's only use of onnxruntime.

The evaluation graph has standard operators and takes the dense weights as inputs, so it runs on
the library's own kernels and needs neither our ops nor a copy of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.artifact import EVAL, MSE, Manifest
from protocol.layout import Vector
from protocol.lean import import_without_torch

onnxruntime = import_without_torch("onnxruntime")

BATCH = 256  # Bounds the activations' memory; throughput does not grow beyond it.


@dataclass(frozen=True)
class Scores:
    """What a model reaches on the test examples."""

    accuracy: float | None  # Share of correct predictions, 0..1; None for a regression.
    loss: float  # Mean cross-entropy in nats, or mean squared error.


class Evaluator:
    """One session for a whole run."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        x: npt.NDArray[np.float32],
        y: npt.NDArray[Any],
        threads: int,
    ) -> None:
        """Open the graph; `x` is [n, *input_shape], `y` is [n]."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / EVAL), options, providers=["CPUExecutionProvider"]
        )
        self._layout, self._x, self._y = manifest.layout, x, y
        self._is_regression = manifest.loss == MSE

    def scores(self, weights: Vector) -> Scores:
        """Return accuracy and loss of the model with these dense weights."""
        feeds = dict(self._layout.views(weights))
        correct, loss = 0, 0.0
        for begin in range(0, len(self._y), BATCH):
            labels = self._y[begin : begin + BATCH]
            logits = self._session.run(None, {"x": self._x[begin : begin + BATCH], **feeds})[0].astype(
                np.float64
            )
            if self._is_regression:
                loss += float(np.square(logits - labels).mean(axis=1).sum())
                continue
            correct += int((logits.argmax(axis=1) == labels).sum())
            logits -= logits.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(logits).sum(axis=1))
            loss += float((log_sum - logits[np.arange(len(labels)), labels]).sum())
        accuracy = None if self._is_regression else correct / len(self._y)
        return Scores(accuracy, loss / len(self._y))
