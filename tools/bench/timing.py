"""How everything here is timed: medians of repetitions that alternate between the sides.

One thread is timed in CPU seconds of this process, which a busy neighbour does not lengthen. More
threads are timed in wall-clock seconds, since the CPU seconds of all of them add up: measure those on
a quiet machine.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping

SECONDS = 4.0  # For each side.
MIN_REPETITIONS = 5
# A sample lasts at least this long: below it the clock's own cost shows, and a side would never be warm.
SAMPLE_SECONDS = 0.02

Step = Callable[[], object]


@functools.cache
def say_once(text: str) -> None:
    """Say on stderr what is missing, the first time that it is."""
    print(f"sparsefleet bench: {text}", file=sys.stderr)


def clock_of(threads: int) -> str:
    """Return what `alternate` measures with that many threads: "cpu" or "wall"."""
    return "cpu" if threads == 1 else "wall"


def alternate(steps: Mapping[str, Step], threads: int = 1, seconds: float = SECONDS) -> dict[str, float]:
    """Return the median seconds of one call of each step, measured in turn after two calls each.

    `seconds` is the time given to each step; every one is sampled at least MIN_REPETITIONS times.
    """
    now = time.process_time if clock_of(threads) == "cpu" else time.perf_counter
    calls: dict[str, int] = {}
    for name, step in steps.items():
        step()  # The first call makes plans and buffers.
        begin_s = now()
        step()
        calls[name] = max(1, round(SAMPLE_SECONDS / max(now() - begin_s, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    until_s = time.monotonic() + seconds * len(steps)
    while time.monotonic() < until_s or min(map(len, found.values())) < MIN_REPETITIONS:
        for name, step in steps.items():
            begin_s = now()
            for _ in range(calls[name]):
                step()
            found[name].append((now() - begin_s) / calls[name])
    return {name: statistics.median(values) for name, values in found.items()}
