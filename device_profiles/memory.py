"""Memory of this process and of this machine."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]


def peak_rss_bytes(root: Path = Path("/"), system: str | None = None) -> int:
    """Return the largest resident set of this process since it started, in bytes; 0 where unknown.

    Linux' VmHWM comes first: ru_maxrss survives fork and exec there, so that a small client started
    by a large parent would report the parent's peak.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (root / "proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows.
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if (system or platform.system()) == "Darwin" else peak * 1024


def available_bytes() -> int:
    """Return what this process may have resident in all before the machine has to swap, in bytes."""
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)
