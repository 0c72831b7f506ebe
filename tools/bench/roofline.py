"""sparsefleet bench roofline: what this core can do at most, measured by the op library's own loops.

    fma_gflop_per_s           independent multiply-adds in registers
    gather_l1_gflop_per_s     the sparse kernels' inner loop with its tile in L1: their load-limited roofline
    gather_l2_gflop_per_s     the same, its tile in L2
    load_l1_gb_per_s, load_l2_gb_per_s      reading
    copy_dram_gb_per_s        y = a * x as McCalpin's STREAM counts it: bytes read and written

A limit is the best of its samples; one thread. The gather is also a step for `alternate`, so that a
layer and its limit are measured in turn.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_client.bindings import aligned
from edge_client.kernels import library_path
from edge_client.ort import kernel_isa
from protocol.errors import RuntimeMissing
from protocol.layout import Vector

L1_BYTES = 16 * 1024  # Half of the smallest L1 we know: offsets and weights need room too.
L2_BYTES = 192 * 1024  # Beyond every L1, within the smallest L2 we know (256 KiB for each core).
DRAM_BYTES = 64 * 1024 * 1024  # Each of the two buffers.
ENTRIES = 512
SAMPLE_SECONDS = 0.02
SAMPLES = 9

Work = Callable[[int], int]  # Rounds -> operations or bytes done.


def measure() -> dict[str, Any]:
    """Return every limit of this machine, with the instruction set that it holds for."""
    limits = Limits.load()
    x, y = aligned(DRAM_BYTES // 4), aligned(DRAM_BYTES // 4)
    x[:], y[:] = 1.0, 1.0  # Touched: pages that are not there yet would be timed.
    return {
        "isa": limits.isa,
        "fma_gflop_per_s": _best(limits.fma),
        "gather_l1_gflop_per_s": _best(limits.gather(L1_BYTES)),
        "gather_l2_gflop_per_s": _best(limits.gather(L2_BYTES)),
        "load_l1_gb_per_s": _best(limits.read(L1_BYTES)),
        "load_l2_gb_per_s": _best(limits.read(L2_BYTES)),
        "copy_dram_gb_per_s": _best(limits.scale(x, y)),
    }


@dataclass(frozen=True)
class Limits:
    """The library's yardsticks."""

    library: ctypes.CDLL
    isa: str
    sums: Vector

    @classmethod
    def load(cls) -> Limits:
        """Open the op library.

        Raises:
            RuntimeMissing: it is not built, or SPARSEFLEET_ISA names what this machine does not have.
        """
        path = library_path()
        isa = kernel_isa(path)
        if not isa:
            raise RuntimeMissing("SPARSEFLEET_ISA names an instruction set that this machine does not have")
        library = ctypes.CDLL(str(path))
        for name in ("sums", "tile", "ahead", "fma", "gather", "read", "scale"):
            getattr(library, f"sparsefleet_roofline_{name}").restype = ctypes.c_int64
        sums = np.full(library.sparsefleet_roofline_sums(), 1e-9, np.float32)
        return cls(library, isa, sums)

    def fma(self, rounds: int) -> int:
        """Multiply and add in registers."""
        return int(self.library.sparsefleet_roofline_fma(ctypes.c_int64(rounds), _pointer(self.sums)))

    def gather(self, tile_bytes: int) -> Work:
        """The inner loop of the sparse kernels, at random places of a tile of so many bytes."""
        rng = np.random.default_rng(0)
        x = aligned(tile_bytes // 4)
        x[:] = 1e-9
        places = (x.size - self.library.sparsefleet_roofline_tile()) // 16 + 1
        read = ENTRIES + self.library.sparsefleet_roofline_ahead()
        offset = (16 * rng.integers(0, places, read)).astype(np.int32)
        value = np.full(ENTRIES, 1e-9, np.float32)

        def work(rounds: int) -> int:
            return int(
                self.library.sparsefleet_roofline_gather(
                    _pointer(x),
                    _pointer(value),
                    _pointer(offset),
                    ctypes.c_int64(ENTRIES),
                    ctypes.c_int64(rounds),
                    _pointer(self.sums),
                )
            )

        return work

    def read(self, num_bytes: int) -> Work:
        """Read one buffer again and again."""
        x = aligned(num_bytes // 4)
        x[:] = 1e-9

        def work(rounds: int) -> int:
            count, again = ctypes.c_int64(x.size), ctypes.c_int64(rounds)
            return int(self.library.sparsefleet_roofline_read(_pointer(x), count, again, _pointer(self.sums)))

        return work

    def copy(self, num_bytes: int) -> Callable[[], int]:
        """Read half of so many bytes and write the other half, once."""
        x, y = (aligned(num_bytes // 8) for _ in range(2))
        x[:], y[:] = 1.0, 1.0
        work = self.scale(x, y)
        return lambda: work(1)

    def scale(self, x: Vector, y: Vector) -> Work:
        """Read x, write y."""

        def work(rounds: int) -> int:
            call = self.library.sparsefleet_roofline_scale
            count, factor = ctypes.c_int64(x.size), ctypes.c_float(1.0)
            return sum(int(call(_pointer(x), factor, count, _pointer(y))) for _ in range(rounds))

        return work


def _best(work: Work) -> float:
    """Return the highest rate in 1e9 a second, of samples that last SAMPLE_SECONDS each."""
    rounds = 1
    while True:
        begin_s = time.process_time()
        work(rounds)
        taken_s = time.process_time() - begin_s
        if taken_s >= SAMPLE_SECONDS:
            break
        rounds *= 2
    best = 0.0
    for _ in range(SAMPLES):
        begin_s = time.process_time()
        done = work(rounds)
        best = max(best, done / (time.process_time() - begin_s) / 1e9)
    return best


def _pointer(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def lines(found: dict[str, Any]) -> list[str]:
    """The limits for people."""
    unit = {"gflop_per_s": "GFLOP/s", "gb_per_s": "GB/s"}
    out = [f"one thread, {found['isa']}:"]
    for name, value in found.items():
        for suffix, text in unit.items():
            if name.endswith(suffix):
                out.append(f"  {name.removesuffix('_' + suffix).replace('_', ' '):12} {value:8.1f} {text}")
    return out
