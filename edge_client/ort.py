"""ONNX Runtime itself: imported late, one package of it, with our op library and a board's options."""

from __future__ import annotations

import ctypes
import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from protocol.errors import RuntimeMissing
from protocol.lean import import_without_torch

PORTABLE, MODULE = "portable", "module"  # The kinds of runtime (runtime.py).
TRAINING_PACKAGE = "onnxruntime-training-cpu"
# Longer than what lies between two nodes of a step: on a Xeon 5 us gained little, 10 most, 20 all. Boards are slower.
SPIN_US = 50
SPIN_IS_BOUNDED_FROM = (1, 26)  # Older ones spin for a million pauses, 3 to 50 ms, or not at all.


def onnxruntime() -> ModuleType:
    """Return the module, imported when it is first needed: a waiting client does without its 25 MB.

    Raises:
        RuntimeMissing: it is not installed, or does not load on this machine.
    """
    try:
        return import_without_torch("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(
            f"onnxruntime cannot be imported ({error}); install it: pip install 'sparsefleet[device]'"
        ) from error


def installed_package() -> str:
    """Return "package version" of the one onnxruntime that is installed.

    Raises:
        RuntimeMissing: none is installed, or both the stock and the training package are. They overwrite
            each other's files, and which one runs is a matter of luck.
    """
    found = []
    for package in ("onnxruntime", TRAINING_PACKAGE, "onnxruntime-training"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(found) > 1:
        raise RuntimeMissing(
            f"{' and '.join(found)} are both installed and overwrite each other; uninstall all of them, then "
            "install one: 'onnxruntime' on a board, 'onnxruntime-training-cpu' where models are exported"
        )
    return found[0] if found else f"onnxruntime {onnxruntime().__version__}"


def kernel_isa(library: Path) -> str:
    """Return the instruction set that the op library chose on this machine, e.g. "avx2"."""
    try:
        loaded = ctypes.CDLL(str(library))
        loaded.sparsefleet_isa.restype = ctypes.c_char_p
        return str(loaded.sparsefleet_isa().decode())
    except (OSError, AttributeError) as error:
        raise RuntimeMissing(
            f"the op library {library} cannot be loaded: {error}; build it with: make"
        ) from error


def session_options(library: Path, threads: int, spin: bool = False) -> Any:
    """Options for a board: its own thread count, and no long spinning unless asked for.

    Pool threads that spin between two nodes of a step are at work sooner: two of them took a sixth less time than two
    that slept. But without a bound they burn joules and starve the neighbours: on two busy cores it cost a factor of 6
    to 25 in time. So they spin for SPIN_US, where onnxruntime knows a bound, and not at all where it does not; `spin`
    takes the bound away. Between steps they sleep in any case (docs/engine.md has what each costs).

    And memory that can be foretold (export/liveness.py): nodes run in the order of the file, where by
    default ONNX Runtime may delay what only the backward pass reads; tensors are freed behind their
    last reader instead of staying for a later tensor of their size; and no pattern of the first step
    is allocated again as one block beside it, which took onnxruntime 1.31.1 from 200 to 300 MB for a
    ResNet-18. No difference in time was measurable (tools/bench/step.py).
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    is_bounded = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= SPIN_IS_BOUNDED_FROM
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin or is_bounded else "0")
    if is_bounded and not spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime raises its own kinds, without a common base.
        raise RuntimeMissing(f"{installed_package()} refuses the op library: {error}") from error
    return options
