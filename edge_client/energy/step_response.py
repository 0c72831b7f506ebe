"""The time constant of a sensor's low pass, by a step test on the board itself.

All cores are loaded for a while, then let go; what the sensor shows falls as

    y(t) = y_end + (y_begin - y_end) * exp(-t / tau)

and the slope of log(y - y_end) is -1 / tau, wherever the edge was. If the board's power itself falls
slowly (a governor that waits), that is in the result, and the spread of the repetitions shows it.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

from edge_client.energy.source import Sensor
from protocol.errors import ConfigError

# Part of the fall that is fitted: above, the power itself may still be falling; below, steps and noise prevail.
FROM, TO = 0.9, 0.1
LEAST_POINTS = 5


@dataclass(frozen=True)
class TimeConstant:
    """What the test found."""

    tau_s: float  # 0: the sensor follows faster than it can be read.
    uncertainty_s: float  # k = 2, from the repetitions.
    fall_w: float  # How far the power fell.


def fit(times_s: Sequence[float], watts: Sequence[float]) -> tuple[float, float]:
    """Return tau and the fall in watts of samples that begin before the fall and end well after it.

    Raises:
        ValueError: the fall does not stand out from the noise.
    """
    t, y = np.asarray(times_s, float), np.asarray(watts, float)
    end = y[-max(3, len(y) // 4) :]
    begin_w, end_w, noise_w = float(y[:2].mean()), float(end.mean()), float(end.std())
    fall_w = begin_w - end_w
    if fall_w < max(10 * noise_w, 0.2):
        raise ValueError(f"the power fell by {fall_w:.2f} W only, with {noise_w:.2f} W of noise")
    rest = (y - end_w) / fall_w
    # One stretch: from the last time above FROM to the first below TO.
    first = int(np.flatnonzero(rest >= FROM)[-1]) + 1
    below = np.flatnonzero(rest[first:] < TO)
    chosen = slice(first, first + int(below[0]) if len(below) else len(rest))
    if len(rest[chosen]) < LEAST_POINTS:
        return 0.0, fall_w
    # An error of y weighs 1/y in its logarithm.
    slope = np.polyfit(t[chosen], np.log(rest[chosen]), 1, w=rest[chosen])[0]
    return float(-1 / slope), fall_w


def step_test(
    sensor: Sensor,
    load: Callable[[], AbstractContextManager[None]] | None = None,
    repetitions: int = 3,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> TimeConstant:
    """Measure the time constant of `sensor`; `load` returns a context manager that keeps the board busy.

    Takes about 12 s for each repetition.

    Raises:
        ConfigError: not a power sensor, or the fall does not stand out.
    """
    if sensor.about.quantity != "power":
        raise ConfigError(f"{sensor.about.name} counts energy itself: it has no time constant")
    every_s = max(0.02, sensor.about.period_s)
    found = []
    for _ in range(repetitions):
        times_s: list[float] = []
        watts: list[float] = []

        def sample(times_s: list[float] = times_s, watts: list[float] = watts) -> None:
            try:
                value = sensor.read().value
            except (OSError, ValueError):
                return
            times_s.append(clock())
            watts.append(value)

        with (load or busy)():
            sleep(6.0)
            sample()
            sample()
        until_s = clock() + 6.0
        while clock() < until_s:
            sample()
            sleep(every_s)
        try:
            found.append(fit(times_s, watts))
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{sensor.about.name}: no time constant ({error}); let the board be idle otherwise and try again"
            ) from error
    taus_s = [tau_s for tau_s, _ in found]
    spread_s = statistics.stdev(taus_s) if len(taus_s) > 1 else taus_s[0]
    return TimeConstant(statistics.mean(taus_s), 2 * spread_s, statistics.mean(fall_w for _, fall_w in found))


@contextmanager
def busy(num_threads: int | None = None) -> Iterator[None]:
    """Keep every core busy with products of matrices."""
    stopped = threading.Event()

    def work() -> None:
        a = np.ones((192, 192), np.float32)
        while not stopped.is_set():
            a = (a @ a) * np.float32(1 / 192)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads or os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
