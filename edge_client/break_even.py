"""From which density on a layer runs on the dense kernels: a library's guess, or this device's figure.

There are two: Winograd's algorithm pays earlier, for the layers that it suits (3x3, stride 1, maps of 8x8 and larger).
The library decides layer by layer whenever a mask changes. It brings a guess for each instruction set;
`sparsefleet bench calibrate --state FOLDER` measures, and the client with that state folder uses what
was found. Not measured at every start, because sparse and dense kernels round differently: a density
between two measurements would end in other bits.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import msgspec

from edge_client.ort import kernel_isa
from protocol.durable import replace_file
from protocol.errors import DataError

FILE = "break-even.json"
NEVER = 2.0  # Above every density: all layers run sparse.


class BreakEven(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's figure, and what it was measured with."""

    dense_from: float
    isa: str
    threads: int
    model: str
    winograd_from: float = 0.0  # Files of older versions lack it: the library's guess.


def current(library: Path) -> tuple[float, float]:
    """Return the densities from which on layers run dense in this process, and by Winograd's algorithm."""
    found = ctypes.c_double(), ctypes.c_double()
    ctypes.CDLL(str(library)).sparsefleet_break_even(*map(ctypes.byref, found))
    return found[0].value, found[1].value


def use(library: Path, dense_from: float, winograd_from: float) -> None:
    """Set them for this process, from the next step on; 0 is the library's own guess."""
    loaded = ctypes.CDLL(str(library))
    loaded.sparsefleet_set_break_even.argtypes = [ctypes.c_double] * 2
    loaded.sparsefleet_set_break_even(dense_from, winograd_from)


def save(state: Path, found: BreakEven) -> Path:
    """Keep a figure in a client's state folder; return where."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / FILE
    replace_file(path, msgspec.json.format(msgspec.json.encode(found)))
    return path


def apply(library: Path, state: Path) -> str:
    """Use what the state folder holds for this instruction set; return the kernels' name for reports.

    Raises:
        DataError: the file is damaged.
        RuntimeMissing: the library cannot be loaded.
    """
    isa, path = kernel_isa(library), state / FILE
    source = "default"
    if path.is_file():
        try:
            found = msgspec.json.decode(path.read_bytes(), type=BreakEven)
        except msgspec.MsgspecError as error:
            raise DataError(f"{path} is damaged ({error}); remove it, or calibrate again") from error
        for density, least in ((found.dense_from, math.ulp(0.0)), (found.winograd_from, 0.0)):
            if not least <= density <= NEVER:
                raise DataError(f"{path} says {density}, which is no density; remove it, or calibrate again")
        if found.isa == isa:
            use(library, found.dense_from, found.winograd_from)
            source = "calibrated"
        else:
            source = f"default; {path.name} is for {found.isa}"
    dense_from, winograd_from = current(library)
    return f"{isa}, dense from {dense_from:.2f}, Winograd from {winograd_from:.2f} ({source})"
