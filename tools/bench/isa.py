"""One instruction set for all sides of a comparison: `--isa avx2`.

A ratio holds for one width of vectors: sparse kernels wait for loads, dense ones for multiply-adds, and a processor
has another balance of them for each width.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge_client.kernels import library_path
from edge_client.ort import kernel_isa
from protocol.errors import ConfigError

OURS = "SPARSEFLEET_ISA"
# What PyTorch's own kernels, oneDNN (convolutions) and MKL (matrix products) call each of ours. MKL was half as fast
# again where it was left out. On AMD's processors it takes kernels of its own, whatever it is told: as fast with each
# of these names, and faster than SSE can be.
TORCH = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
NAMES = {
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "baseline": ("default", "SSE41", "SSE4_2"),
}

WIDEST = ("avx512", "neon")  # Of their architectures: nothing is held back by these.


def hold(name: str) -> None:
    """Let our kernels and torch's use nothing beyond this, in this process and its children; before either has run.

    Raises:
        ConfigError: this machine does not have it.
    """
    os.environ |= {OURS: name, **dict(zip(TORCH, NAMES[name], strict=True))}
    if kernel_isa(library_path()) != name:
        raise ConfigError(
            f"--isa {name}: this machine does not have it; `sparsefleet bench roofline` says what it has"
        )
    if name == "baseline" and _is_amd():
        print(
            "sparsefleet bench: --isa baseline: MKL cannot be held on AMD processors; "
            "torch's matrix products have wider vectors",
            file=sys.stderr,
        )


def _is_amd() -> bool:
    about = Path("/proc/cpuinfo")
    return about.is_file() and "AuthenticAMD" in about.read_text()


def is_held() -> bool:
    """Whether our kernels may use less than the machine has. onnxruntime's own kernels cannot be told."""
    return os.environ.get(OURS, "") not in ("", *WIDEST)
