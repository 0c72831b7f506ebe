"""What a task may take of this device, whatever its coordinator asks: time, energy; memory is in memory.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec

from protocol.errors import OverBudget

Positive = Annotated[float, msgspec.Meta(ge=0)]
LINGER_S = 5.0  # How long the watching thread waits for the next step before it ends.


class LimitsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The device's own limits; a task that exceeds one is stopped and refused, with the reason. 0: none."""

    step_time_s: Positive = 600.0  # One training step.
    round_time_s: Positive = 0.0  # All steps of one task.
    round_energy_j: Positive = 0.0  # Of a task so far, as this device's source tells it; needs one that does.


class Budget:
    """Of one task. Call `check` after each step."""

    def __init__(
        self,
        limits: LimitsConfig,
        spent_j: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The task begins now. `spent_j` tells what is known of its joules so far; None: nothing ever will be."""
        self._limits, self._spent_j, self._clock = limits, spent_j, clock
        self._begin_s = clock()

    def check(self) -> None:
        """Do nothing while the task is within its limits.

        Raises:
            OverBudget: it has taken more, or nothing on this device can tell.
        """
        limits, duration_s = self._limits, self._clock() - self._begin_s
        if limits.round_time_s and duration_s > limits.round_time_s:
            raise OverBudget(
                f"the task trains for {duration_s:.0f} s already; this device allows limits.round_time_s = "
                f"{limits.round_time_s:g}"
            )
        if not limits.round_energy_j:
            return
        spent_j = self._spent_j()
        if spent_j is None:
            raise OverBudget(
                f"limits.round_energy_j = {limits.round_energy_j:g}, and no source on this device tells joules: "
                "`sparsefleet energy sources` says why"
            )
        if spent_j > limits.round_energy_j:
            raise OverBudget(
                f"the task took {spent_j:.1f} J so far; this device allows limits.round_energy_j = "
                f"{limits.round_energy_j:g}"
            )


class Watchdog:
    """Interrupts a step that lasts too long: what runs in C++ cannot look at a clock itself."""

    def __init__(self, limit_s: float, interrupt: Callable[[], None]) -> None:
        """`interrupt` is called from another thread, once for each step that exceeds the limit; 0: never."""
        self.limit_s, self._interrupt = limit_s, interrupt
        self._state = threading.Condition()
        self._step = 0  # Counts them; odd while one runs.
        self._thread: threading.Thread | None = None
        self.has_interrupted = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch one step. It tells by `has_interrupted` whether it was too long."""
        self.has_interrupted = False
        if not self.limit_s:
            yield
            return
        with self._state:
            self._step += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._guard, name="watchdog", daemon=True)
                self._thread.start()
            self._state.notify()
        try:
            yield
        finally:
            with self._state:
                self._step += 1
                self._state.notify()

    def _guard(self) -> None:
        with self._state:
            while self._state.wait_for(lambda: self._step % 2 == 1, LINGER_S):
                step = self._step
                if not self._state.wait_for(lambda at=step: self._step != at, self.limit_s):  # type: ignore[misc]
                    self.has_interrupted = True
                    self._interrupt()
                    self._state.wait_for(lambda at=step: self._step != at)  # type: ignore[misc]
            self._thread = None
