"""CPU seconds of this process tree and of the whole machine, as the share that attribution needs."""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

USER_HZ = 100  # Ticks of /proc/stat per second, the same on x86 and ARM: shorter windows are coarse.


def process_tree_s() -> float:
    """Return user and system seconds of this process, its finished children and its living ones.

    A child that ends between two calls moves from the living to the finished ones, and its seconds
    with it, so the sum does not fall when it is waited for.
    """
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # It ended between the listing and the look.
            continue
        total += times.user + times.system
        # Linux only: what a child's own finished children used.
        total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(total)


def machine_busy_s(root: Path = Path("/")) -> float | None:
    """Return the seconds that all CPUs together were busy since boot, from /proc/stat; None if unreadable.

    Idle and iowait are not busy; steal is another guest's work; guest time is already in user.
    """
    try:
        first = (root / "proc/stat").read_text().partition("\n")[0].split()
        user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in first[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / USER_HZ
