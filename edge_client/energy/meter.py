"""Meter: what each phase of a round cost.

    meter = Meter(choose("auto", profile), conditions=watch())
    meter.measure_idle(10.0)
    with meter.phase("train") as span:
        ...
        span.received_bytes = 0
    update.phases = meter.take()

Phases do not nest and do not overlap; what happens between them is not attributed to anyone. During
a phase a thread reads the source at its useful rate, and the board's conditions once a second. CPU
time is that of the process with all threads, the meter's included, whose share is stated apart.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from edge_client.energy.account import Closed, Span, phase_of
from edge_client.energy.conditions import EVERY_S, Conditions, Seen
from edge_client.energy.pooling import Measured, pool
from edge_client.energy.source import Reading, Sensor
from edge_client.energy.stuck import Stuck
from edge_client.energy.traffic import Moved, Traffic
from edge_client.energy.window import Energy, Idle, Window, counted
from protocol.messages import Phase

_log = logging.getLogger(__name__)

Clock = Callable[[], float]

IDLE = "idle"
PATIENCE_S = 1.0  # With a read that does not return.


def boot_time_s() -> float:
    """Return seconds since boot: never set back, and going on through a suspend where Linux counts that."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Keeper(Protocol):
    """Whoever keeps the samples."""

    def keep(self, phase: str, at_s: float, reading: Reading) -> None:
        """Take one; must neither block nor raise."""


@dataclass
class _Open:
    """What is gathered while a phase lasts."""

    name: str
    begin_s: float
    cpu_s: float
    window: Window
    before: Reading | None
    previous: tuple[float, Reading] | None  # Of a counter: the last reading, for the peak.
    meter_cpu_s: float = 0.0
    warning: str = ""  # What is wrong with the source.


class Meter:
    """Measures one phase at a time, from one source."""

    def __init__(
        self,
        source: Sensor,
        clock: Clock = boot_time_s,
        cpu_time: Clock = time.process_time,
        conditions: Conditions | None = None,
        keeper: Keeper | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Measure with `source`; `clock` must not jump, so it is never the wall clock."""
        self.source = source
        self.idle: Idle | None = None
        self._clock, self._cpu_time = clock, cpu_time
        self._conditions, self._keeper, self._traffic = conditions, keeper, traffic
        self._stuck = Stuck(source.about)
        self._reading = threading.Lock()  # Of the source.
        self._lock = threading.Lock()  # Of the open phase; never held while the source is read.
        self._open: _Open | None = None
        self._done: list[tuple[Measured, Closed]] = []
        self._is_failing = self._is_stuck = False

    @contextmanager
    def phase(self, name: str, in_background: bool = True) -> Iterator[Span]:
        """Measure a block. A block that raises is recorded too: its joules are spent.

        Not `in_background`: whoever has a clock of his own calls `sample`.

        Raises:
            RuntimeError: another phase is in progress.
        """
        if self._open is not None:
            raise RuntimeError(f"phase {name!r} begins within phase {self._open.name!r}; phases do not nest")
        span = Span(name)
        self._begin(name)
        ended, thread = self._keep_sampling() if in_background else (threading.Event(), None)
        try:
            yield span
        finally:
            ended.set()
            if thread is not None:
                thread.join(PATIENCE_S)
            self._end(span)

    def now_s(self) -> float:
        """Return the time of the meter's clock."""
        return self._clock()

    def seen_now(self) -> Seen:
        """Return how the board is now: what a waiting client tells of itself."""
        if self._conditions is None:
            return Seen()
        with self._lock:
            return self._conditions.now(self._clock())

    def take(self) -> list[Phase]:
        """Return the phases measured since the last call, in order."""
        done, self._done = self._done, []
        pooled = pool([measured for measured, _ in done], self.source.about)
        return [
            phase_of(measured, closed, self.source.about, self.idle)
            for measured, (_, closed) in zip(pooled, done, strict=True)
        ]

    def spent_j(self) -> float | None:
        """Return what is known so far of the joules since the last `take`; None without a source.

        What waiting took is left out, and so is what no reading has told yet: it is never more than was spent.
        """
        if self.source.about.scope == "none":
            return None
        known = [measured.energy for measured, _ in self._done if measured.phase != IDLE]
        if self._open is not None:
            reading, now_s = self._read() if self.source.about.quantity != "power" else (None, self._clock())
            with self._lock:
                known.append(self._so_far(self._open, reading, now_s))
        return sum(energy.energy_j for energy in known if energy is not None)

    def _so_far(self, open_: _Open, reading: Reading | None, now_s: float) -> Energy | None:
        if self.source.about.quantity == "power":
            return open_.window.energy(now_s)
        if open_.before is None or reading is None:
            return None
        return counted(open_.before, reading, now_s - open_.begin_s, self.source.about.accuracy)

    def measure_idle(self, duration_s: float, sleep: Callable[[float], None] = time.sleep) -> Idle | None:
        """Measure what the waiting board draws, to be subtracted from each phase from now on.

        None, at once, where there is nothing to subtract: no source, or a model of what comes on top.
        """
        about = self.source.about
        if about.scope == "none" or about.is_net or duration_s <= 0:
            return None
        with self.phase(IDLE):
            sleep(duration_s)
        measured, _ = self._done.pop()
        energy = measured.energy
        if energy is None:
            _log.warning("the idle power is unknown source=%s", about.name)
            return None
        self.idle = Idle(
            energy.energy_j / energy.duration_s, energy.statistical_j / energy.duration_s, energy.duration_s
        )
        _log.info("idle power_w=%.3f uncertainty_w=%.3f", self.idle.power_w, self.idle.uncertainty_w)
        return self.idle

    @property
    def first_sample_s(self) -> float | None:
        """When to take a phase's first sample: as soon as readings are wholly of it; None: never."""
        about = self.source.about
        if about.sample_s is None:
            return None if self._conditions is None else EVERY_S
        settle_s = Window(about, about.sample_s, 0.0).settle_s
        return min(settle_s + 0.001, about.sample_s) if settle_s else about.sample_s

    def sample(self) -> None:
        """Read the source once, and attribute what it says to the open phase."""
        begin_s, open_ = time.thread_time(), self._open
        reading, now_s = self._read()
        with self._lock:
            if open_ is None or open_ is not self._open:  # It ended while the source was being read.
                return
            self._attribute(open_, reading, now_s)
            if self._conditions is not None:
                self._conditions.sample(now_s)
            open_.meter_cpu_s += time.thread_time() - begin_s

    def _begin(self, name: str) -> None:
        begin_s = time.thread_time()
        about = self.source.about
        reading, now_s = self._read()
        window = Window(about, about.sample_s or 1.0, now_s)
        open_ = _Open(name, now_s, self._cpu_time(), window, reading, None)
        self._attribute(open_, reading, now_s)
        if self._conditions is not None:
            self._conditions.begin(now_s)
        if self._traffic is not None:
            self._traffic.begin()
        open_.meter_cpu_s = time.thread_time() - begin_s
        self._open = open_

    def _end(self, span: Span) -> None:
        open_ = self._open
        assert open_ is not None
        begin_s, cpu_s = time.thread_time(), self._cpu_time() - open_.cpu_s
        reading, end_s = self._read()
        with self._lock:
            self._open = None
            self._attribute(open_, reading, end_s)
        duration_s = end_s - open_.begin_s
        coverage = 0.0
        energy = self._so_far(open_, reading, end_s)
        if self.source.about.quantity == "power":
            coverage = open_.window.coverage(end_s)
        elif energy is not None:
            coverage = 1.0
        seen = self._conditions.end(end_s) if self._conditions is not None else Seen()
        moved = self._traffic.moved() if self._traffic is not None else Moved()
        peak_w = open_.window.peak_w if open_.window.num_samples else None
        meter_cpu_s = open_.meter_cpu_s + time.thread_time() - begin_s
        closed = Closed(span, cpu_s, duration_s, peak_w, coverage, seen, meter_cpu_s, open_.warning, moved)
        self._done.append((Measured(span.name, open_.begin_s, energy), closed))

    def _read(self) -> tuple[Reading | None, float]:
        """Return a reading, or None for a gap, and the middle of the time that it took.

        While the sampler's thread hangs in a read, there are gaps; the training does not wait for it.
        """
        before_s = self._clock()
        reading: Reading | None = None
        try:
            if not self._reading.acquire(timeout=PATIENCE_S):
                raise OSError(f"a read has taken more than {PATIENCE_S:.0f} s")
            try:
                reading = self.source.read()
            finally:
                self._reading.release()
        except (OSError, ValueError) as error:
            if not self._is_failing and self.source.about.scope != "none":
                _log.warning("energy is not read now source=%s reason=%s", self.source.about.name, error)
            self._is_failing = True
        else:
            if self._is_failing:
                _log.warning("energy is read again source=%s", self.source.about.name)
            self._is_failing = False
        return reading, (before_s + self._clock()) / 2

    def _attribute(self, open_: _Open, reading: Reading | None, now_s: float) -> None:
        """Give a reading to a phase."""
        if reading is None:
            return
        warning = self._stuck.add(now_s, reading.value, self._cpu_time())
        open_.warning = warning or open_.warning
        if bool(warning) is not self._is_stuck:
            self._is_stuck = bool(warning)
            said = warning or "it moves again"
            _log.warning(
                "is the energy source to be believed? source=%s reason=%s", self.source.about.name, said
            )
        if self._keeper is not None:
            self._keeper.keep(open_.name, now_s, reading)
        if self.source.about.quantity == "power":
            open_.window.add(now_s, reading.value)
            return
        previous = open_.previous
        if previous is None or now_s > previous[0]:
            open_.previous = now_s, reading
        if previous is not None and previous[1].gaps == reading.gaps and now_s > previous[0]:
            open_.window.add(now_s, (reading.value - previous[1].value) / (now_s - previous[0]))

    def _keep_sampling(self) -> tuple[threading.Event, threading.Thread | None]:
        """Sample in the background until the returned event is set, where the source needs it."""
        ended = threading.Event()
        first_s = self.first_sample_s
        if first_s is None:
            return ended, None
        interval_s = self.source.about.sample_s or EVERY_S
        begin_s = self._clock()

        def work() -> None:
            due_s = begin_s + first_s
            while not ended.wait(max(0.0, due_s - self._clock())):
                self.sample()
                due_s = max(due_s + interval_s, self._clock())

        thread = threading.Thread(target=work, name="energy-sampler", daemon=True)
        thread.start()
        return ended, thread
