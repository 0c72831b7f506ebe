"""What a call takes: the growth of this process' peak memory, and its CPU time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Taken(NamedTuple):
    """The cost of one call."""

    bytes: int  # Of resident memory, at the peak, beyond what was resident before.
    cpu_s: float


def taken(function: Callable[[], object]) -> Taken:
    """Call it and return what it took."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins again from here (proc(5)).
    before = _status("VmRSS")
    begin_s = time.thread_time()
    function()
    return Taken(_status("VmHWM") - before, time.thread_time() - begin_s)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return _status("VmRSS", pid)


def _status(name: str, pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no {name} in /proc/{pid}/status")
