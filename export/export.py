"""One module -> one artifact folder, or an error and no folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from onnx import numpy_helper
from torch import nn

from export.artifacts import generate
from export.fuse import fuse
from export.graph import convert
from export.liveness import graph_memory
from export.lower import lower, operators
from export.models import InputShape, builder
from export.narrow import Narrowed, Widths, narrow
from export.parity import check
from export.saved import compress
from export.trace import evaluation_form, trace
from protocol.artifact import (
    CROSS_ENTROPY,
    EVAL,
    INITIAL,
    MANIFEST,
    ORIGIN,
    STEP,
    STEP_COMPRESSED,
    STEP_HALF,
    Manifest,
    dump,
    parse,
)
from protocol.errors import ArtifactError, ConfigError
from protocol.sparse import Mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: Manifest
    worst_difference: float  # Largest relative difference of loss and gradients from PyTorch.
    narrowed: Narrowed | None = None


def export_model(
    model: str,
    input_shape: InputShape,
    num_classes: int,
    folder: Path,
    library: Path,
    seed: int = 0,
    loss: str = CROSS_ENTROPY,
    widths: Widths | None = None,
    weights: Path | None = None,
) -> Exported:
    """Build a model by name and export it, narrowed if `widths` are given.

    `library` is the op library; see `export_module`. `weights` are a run's weights.npz to begin with.

    Raises:
        ConfigError: weights that are not of this model.
    """
    torch.manual_seed(seed)
    module = builder(model)(input_shape, num_classes)
    if weights is not None:
        _load(module, weights)
    if widths is None:
        return export_module(module, model, input_shape, folder, library, loss)
    narrowed = narrow(module, input_shape, widths)
    origin = narrowed.origin(convert(trace(module, input_shape)).layout)
    exported = export_module(narrowed.module, model, input_shape, folder, library, loss, origin)
    return replace(exported, narrowed=narrowed)


def _load(module: nn.Module, path: Path) -> None:
    """Replace a module's parameters and running statistics by those of a file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            given = {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a run's weights.npz") from error
    own = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    wrong = sorted(own.keys() ^ given.keys()) or [
        name for name, value in own.items() if value.shape != given[name].shape
    ]
    if wrong:
        raise ConfigError(f"{path} holds another model's weights: {', '.join(wrong[:3])} differ")
    module.load_state_dict({**module.state_dict(), **given})


def export_module(
    module: nn.Module,
    name: str,
    input_shape: InputShape,
    folder: Path,
    library: Path,
    loss: str = CROSS_ENTROPY,
    origin: Mask | None = None,
) -> Exported:
    """Export a module with its present weights as the initial ones. An existing folder is replaced.

    `loss` is one of protocol.artifact.LOSSES; `origin` says which positions of a whole model these are.

    Raises:
        ArtifactError: an unsupported operator, or a gradient that is not PyTorch's; nothing is written.
    """
    converted = convert(trace(module, input_shape))
    layout = converted.layout
    flat = layout.flatten({key: numpy_helper.to_array(value) for key, value in converted.weights.items()})
    training = generate(converted, library, loss)
    lowered = lower(training.training, layout, converted.sizes)
    step = fuse(lowered)
    evaluation = evaluation_form(
        trace(module, input_shape, standard_only=True), [piece.name for piece in layout.pieces]
    )
    worst = check(step, module, layout, flat, converted.num_classes, library)
    half = compress(fuse(lowered, are_pools_fused=False), True)
    graphs = {STEP: step, STEP_COMPRESSED: compress(step, False), STEP_HALF: half}
    files = {
        **{file: graph.SerializeToString() for file, graph in graphs.items()},
        EVAL: evaluation.SerializeToString(),
        INITIAL: flat.astype("<f4").tobytes(),
        **training.files(),
    }
    if origin is not None:
        files[ORIGIN] = origin.indices.astype("<i4").tobytes()
    packages = ("torch", "onnx", "onnxruntime-training-cpu", "numpy")
    manifest = dump(
        {
            "model": name,
            "input_shape": list(input_shape),
            "num_classes": converted.num_classes,
            "loss": loss,
            "layout": layout.to_json(),
            **({} if origin is None else {"origin_size": origin.size}),
            "statistic_momentum": converted.statistic_momentum,
            "operators": sorted({name for graph in graphs.values() for name in operators(graph)}),
            "memory": {
                file: asdict(graph_memory(graph, layout, flat, input_shape, converted.num_classes, library))
                for file, graph in graphs.items()
            },
            "versions": {package: _version(package) for package in packages},
            "files": {
                file: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                for file, data in files.items()
            },
        }
    )
    _write(folder, {**files, MANIFEST: manifest})
    log.info("exported model=%s weights=%d folder=%s difference=%.1e", name, layout.size, folder, worst)
    return Exported(folder, parse(manifest), worst)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write a complete folder or none: a half-written artifact would be taken for a whole one."""
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ArtifactError(f"{folder} exists and is no artifact; choose another --out, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        staging.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staging, folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ArtifactError(f"{folder} cannot be written: {error}") from error
