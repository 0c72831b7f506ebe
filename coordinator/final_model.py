"""The trained model as files: weights by name, and an ONNX graph that any onnxruntime loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from protocol.artifact import EVAL, Manifest
from protocol.layout import Vector

ONNX_FILE, WEIGHTS_FILE = "model.onnx", "weights.npz"


def write(folder: Path, manifest: Manifest, artifact: Path, weights: Vector) -> tuple[Path, Path]:
    """Write weights.npz and model.onnx (input x [N, ...], output logits); return their paths."""
    tensors = manifest.layout.views(weights)
    np.savez_compressed(folder / WEIGHTS_FILE, **tensors)  # type: ignore[arg-type]
    model = onnx.load(str(artifact / EVAL))
    inputs = [info for info in model.graph.input if info.name not in tensors]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.save(model, str(folder / ONNX_FILE))
    return folder / ONNX_FILE, folder / WEIGHTS_FILE
