"""The other engines, each as a function that takes one training step and returns its loss.

A rival that is not installed raises Missing with the reason; `available` says it on stderr and goes on
without. All of them train the dense network of the same name (a narrowed artifact's too); SparseProp
trains it at the same mask.
"""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.kernels import library_path
from edge_client.ort import session_options
from protocol.artifact import Manifest
from protocol.errors import SparsefleetError
from protocol.layout import PRUNABLE
from protocol.sparse import Mask, count_below
from tools.bench import isa
from tools.bench.subject import LEARNING_RATE, MOMENTUM, Batch
from tools.bench.timing import Step, say_once


class Missing(SparsefleetError):
    """A rival that this machine does not have."""


@dataclass(frozen=True)
class Task:
    """What every rival trains."""

    manifest: Manifest
    mask: Mask
    batch: Batch
    threads: int


def available(task: Task, wanted: dict[str, Callable[[Task], Step]]) -> dict[str, Step]:
    """Return the steps of the rivals that are installed."""
    steps: dict[str, Step] = {}
    for name, make in wanted.items():
        try:
            steps[name] = make(task)
        except (ImportError, Missing) as error:
            say_once(f"{name} is null: {error}")
    return steps


def torch_step(task: Task) -> Step:
    """PyTorch's usual training step of the dense network."""
    return _torch_sgd(_module(task), task)


def sparseprop_step(task: Task) -> Step:
    """SparseProp (Nikdan et al., ICML 2023), its own selector choosing each layer's variant.

    The selector leaves layers of less than 80 % sparsity dense, and those that it measures as faster so.
    """
    try:
        from sparseprop.utils import swap_modules_with_sparse
    except (ImportError, OSError) as error:
        raise Missing(f"{error} (pip install sparseprop: x86 with AVX2, a C++ compiler)") from error
    import torch

    module = _module(task)
    pieces = task.manifest.layout.of_role(PRUNABLE)
    if {p.name: p.shape for p in pieces} != {
        name: tuple(value.shape) for name, value in module.named_parameters() if value.dim() > 1
    }:
        raise Missing("the artifact's layers are not those of the network that is named in it")
    with torch.no_grad():
        for piece in pieces:
            begin, end = count_below(task.mask.indices, [piece.offset, piece.end])
            kept = np.zeros(piece.size, np.float32)
            kept[task.mask.indices[begin:end] - piece.offset] = 1.0
            module.get_parameter(piece.name).mul_(torch.from_numpy(kept.reshape(piece.shape)))
    _limit_openmp(task.threads)
    with contextlib.redirect_stdout(None):  # It narrates every layer.
        swapped = swap_modules_with_sparse(module, tuple(task.batch[0].shape))
    return _torch_sgd(swapped, task)


def ort_training_step(task: Task) -> Step:
    """onnxruntime-training's Module and Optimizer over the dense network, with a static batch.

    Its SGD has no momentum, which spares it one pass over the weights.
    """
    if isa.is_held():
        raise Missing(
            "our kernels are held to an instruction set (--isa, SPARSEFLEET_ISA), and its own cannot be"
        )
    from onnxruntime.training import api

    module = _module(task)
    with tempfile.TemporaryDirectory() as folder:
        _generate(module, task, Path(folder))
        options = session_options(library_path(), task.threads)
        state = api.CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        training = api.Module(
            f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx", session_options=options
        )
        optimizer = api.Optimizer(f"{folder}/optimizer_model.onnx", training)
    optimizer.set_learning_rate(LEARNING_RATE)
    training.train()
    x, labels = task.batch

    def step() -> float:
        loss = float(training(x, labels))
        optimizer.step()
        training.lazy_reset_grad()
        return loss

    return step


def _module(task: Task) -> Any:
    """The dense PyTorch network that the artifact is named after."""
    import torch

    from export.models import builder

    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    return builder(task.manifest.model)(task.manifest.input_shape, task.manifest.num_classes)


def _torch_sgd(module: Any, task: Task) -> Step:
    import torch

    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    x, labels = (torch.from_numpy(array) for array in task.batch)
    module.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def _generate(module: Any, task: Task, folder: Path) -> None:
    """Write the training artifacts of a dense module.

    The batch is static: with a dynamic one ResNet-18 fails at run time. The evaluation graph's batch
    norms keep their training outputs, with which it does not load: they are removed.
    """
    import onnx
    from onnxruntime.training import artifacts

    from export.artifacts import quiet
    from export.trace import trace

    traced = trace(module, tuple(task.manifest.input_shape), standard_only=True)
    for info in (traced.graph.input[0], traced.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = len(task.batch[1])
    del traced.graph.value_info[:]
    with quiet():
        artifacts.generate_artifacts(
            traced,
            requires_grad=[name for name, _ in module.named_parameters()],
            frozen_params=[name for name, _ in module.named_buffers() if name.endswith(("mean", "var"))],
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=folder,
        )
    path = str(folder / "eval_model.onnx")
    evaluation = onnx.load(path)
    for node in evaluation.graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
    onnx.save(evaluation, path)


def _limit_openmp(threads: int) -> None:
    """SparseProp's own OpenMP, which is not torch's copy of it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
