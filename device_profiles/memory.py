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


def available_bytes(root: Path = Path("/")) -> int:
    """Return what this process may have resident in all, in bytes.

    That is until the machine has to swap, or until the limit of the control group that it runs in, as
    a systemd service with MemoryMax does (cgroup v2: memory.max of the group and of those above it; v1, as
    JetPack 4 and 5 have it: memory.limit_in_bytes).
    """
    machine = int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)
    limit = _group_limit_bytes(root)
    return machine if limit is None else min(machine, limit)


def _group_limit_bytes(root: Path) -> int | None:
    """Return the least limit of the groups that this process is in and of those above them; None: no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits, mount = [], root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(mount / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(top: Path, path: str, name: str) -> list[int]:
    group, found = top / path.lstrip("/"), []
    for folder in (group, *group.parents):
        if folder != top and top not in folder.parents:
            break
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # Or "max": none. Version 1 has 2**63 less a page for it.
            found.append(int(text))
    return found
