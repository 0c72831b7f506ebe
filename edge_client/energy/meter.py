"""Meter: what each phase of a round cost.

    meter = Meter(choose("auto", profile))
    with meter.phase("train") as span:
        ...
        span.received_bytes = 0
    update.phases = meter.take()

Phases do not nest and do not overlap; what happens between them is not attributed to anyone. CPU
time and energy are those of the whole process (or machine, as the source says), with all threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_profiles import Profile
from edge_client.energy import rapl
from edge_client.energy.cpu_model import CpuModel
from edge_client.energy.source import EnergySource, NoSource, Reading, Unavailable
from protocol.errors import ConfigError
from protocol.messages import Phase

PREFERENCES = ("auto", "auto-process", "rapl", "rapl-process", "model", "none")

_log = logging.getLogger(__name__)

Clock = Callable[[], float]


@dataclass
class Span:
    """A phase in progress: the bytes are set by whoever moves them."""

    received_bytes: int = 0
    sent_bytes: int = 0
    phase: Phase | None = None  # What it cost, once it has ended.


class Meter:
    """Measures one phase at a time, from one source."""

    def __init__(
        self, source: EnergySource, clock: Clock = time.monotonic, cpu_time: Clock = time.process_time
    ) -> None:
        """Measure with `source`; `clock` must not jump, so it is never the wall clock."""
        self.source = source
        self._clock, self._cpu_time = clock, cpu_time
        self._read = threading.Lock()
        self._open: str | None = None
        self._done: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[Span]:
        """Measure a block. A block that raises is recorded too: its joules are spent.

        Raises:
            RuntimeError: another phase is in progress.
        """
        if self._open is not None:
            raise RuntimeError(f"phase {name!r} begins within phase {self._open!r}; phases do not nest")
        self._open = name
        span = Span()
        before = self.poll()
        cpu_s, begin_s = self._cpu_time(), self._clock()
        ended = self._keep_polling()
        try:
            yield span
        finally:
            ended.set()
            duration_s, cpu_s = self._clock() - begin_s, self._cpu_time() - cpu_s
            energy_j, uncertainty_j = self._energy(before, self.poll(), duration_s)
            span.phase = Phase(
                name,
                duration_s,
                cpu_s,
                energy_j,
                uncertainty_j,
                self.source.name,
                span.received_bytes,
                span.sent_bytes,
            )
            self._done.append(span.phase)
            self._open = None

    def take(self) -> list[Phase]:
        """Return the phases measured since the last call, in order."""
        done, self._done = self._done, []
        return done

    def poll(self) -> Reading | None:
        """Read the source once; a counter that wraps needs this within every poll_s."""
        with self._read:
            return self.source.read()

    def _energy(
        self, before: Reading | None, after: Reading | None, duration_s: float
    ) -> tuple[float | None, float | None]:
        """Return energy and uncertainty; None for both if any read during the phase failed."""
        if before is None or after is None or after.gaps != before.gaps:
            return None, None
        energy_j = after.energy_j - before.energy_j
        return energy_j, self.source.accuracy.uncertainty_j(energy_j, duration_s)

    def _keep_polling(self) -> threading.Event:
        """Poll in the background until the returned event is set, where the source needs it."""
        ended = threading.Event()
        poll_s = self.source.poll_s
        if poll_s is not None:

            def work() -> None:
                while not ended.wait(poll_s):
                    self.poll()

            threading.Thread(target=work, name="energy-poll", daemon=True).start()
        return ended


def choose(preference: str, profile: Profile, root: Path = Path("/")) -> EnergySource:
    """Return the source for a preference.

    "auto" takes RAPL where it can be read, else the model, and logs why; the others are forced.
    "rapl" is the whole package with every process on it, "rapl-process" this process's share of it:
    the right one where several clients run on one machine; "auto-process" is "auto" with the latter.

    Raises:
        ConfigError: no such preference, or the forced source is not available; with reason and cure.
    """
    if preference not in PREFERENCES:
        raise ConfigError(
            f"energy source {preference!r} is not known; choose one of {', '.join(PREFERENCES)}"
        )
    if preference == "none":
        return NoSource()
    if preference == "model":
        return CpuModel(profile)
    found = rapl.find(root, "process" if preference.endswith("-process") else "package")
    if isinstance(found, Unavailable):
        if not preference.startswith("auto"):
            raise ConfigError(f"energy source {preference!r}: {found}")
        model = CpuModel(profile)
        _log.info("energy is modelled source=%s reason=%s", model.name, found)
        return model
    _log.info("energy is measured source=%s", found.name)
    return found
