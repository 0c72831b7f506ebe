"""Samples that a client kept ([meter] keep_samples_mb), as power over time and the phases it falls into."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from protocol.errors import ConfigError
from tools.energy_report.words import kind_of

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MAX_BYTES = 1 << 30  # Of the CSV: 40 million samples, six weeks at 10 Hz.
PAUSE_S = 5.0  # The meter bridges half a second; so long, nobody was measuring.


@dataclass(frozen=True)
class Samples:
    """One file, and its power over time."""

    name: str
    source: str
    quantity: str  # "power" or "energy".
    scope: str
    t_s: Floats  # Since boot.
    value: Floats  # Watts, or joules of a counter.
    gaps: Integers  # Of a counter: its resets so far.
    phase: list[str]

    @property
    def kind(self) -> str:
        """Whether it was measured."""
        return kind_of(self.source)

    @property
    def power_w(self) -> Floats:
        """Power at each time; of a counter the mean since the reading before, NaN where nobody knows.

        What a counter says first in a phase is of the time before: the phase begins with its second mean.
        """
        if self.quantity == "power":
            return self.value
        power_w = np.full(len(self.t_s), np.nan)
        steps = np.diff(self.t_s)
        known = (steps > 0) & (steps <= PAUSE_S) & (np.diff(self.gaps) == 0)
        power_w[1:][known] = np.diff(self.value)[known] / steps[known]
        for i in self._begins():
            power_w[i] = power_w[i + 1] if i + 1 < len(power_w) else np.nan
        return power_w

    def spans(self) -> list[Row]:
        """Return a line for each stretch of one phase: what the shading and the table show."""
        power_w = self.power_w
        edges = [*self._begins(), len(self.phase)]
        return [self._span(begin, end, power_w) for begin, end in itertools.pairwise(edges)]

    def _begins(self) -> list[int]:
        return [
            i
            for i in range(len(self.phase))
            if i == 0 or self.phase[i] != self.phase[i - 1] or self.t_s[i] - self.t_s[i - 1] > PAUSE_S
        ]

    def _span(self, begin: int, end: int, power_w: Floats) -> Row:
        t_s = self.t_s[begin:end]
        within = power_w[begin:end][~np.isnan(power_w[begin:end])]
        energy_j = self._joules(begin, end)
        seconds = float(t_s[-1] - t_s[0])
        return {
            "file": self.name,
            "source": self.source,
            "kind": self.kind,
            "scope": self.scope,
            "phase": self.phase[begin],
            "begin_s": float(t_s[0] - self.t_s[0]),
            "duration_s": seconds,
            "num_samples": end - begin,
            "sampled_j": energy_j,
            "power_mean_w": energy_j / seconds if energy_j is not None and seconds > 0 else None,
            "power_peak_w": float(within.max()) if len(within) else None,
        }

    def _joules(self, begin: int, end: int) -> float | None:
        """Between a phase's first and last sample, without the meter's corrections; None: not known."""
        value = self.value[begin:end]
        if len(value) < 2:
            return None
        if self.quantity == "power":
            return float((np.diff(self.t_s[begin:end]) * (value[1:] + value[:-1]) / 2).sum())
        return None if self.gaps[begin] != self.gaps[end - 1] else float(value[-1] - value[0])


def read_samples(path: Path) -> Samples:
    """Return the samples of a file; what a power cut left of it is read.

    Raises:
        ConfigError: no such file, not one of ours, or one without samples.
    """
    lines = _text(path).split("\n")
    head = lines[0].split()
    if len(head) != 5 or head[0] != "#" or head[2] not in ("power", "energy") or len(lines) < 4:
        raise ConfigError(f"{path} has no samples; a client keeps them with [meter] keep_samples_mb = 50")
    columns = lines[1].split(",")
    t_s, value, gaps, phase = [], [], [], []
    for number, line in enumerate(lines[2:-1], 3):  # The last one is empty, or was cut short.
        fields = dict(zip(columns, line.split(","), strict=False))
        try:
            t_s.append(float(fields["t_s"]))
            value.append(float(fields["value"]))
            gaps.append(int(fields.get("gaps", "0")))  # Files of the first version have none.
            phase.append(fields["phase"])
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{path}: line {number} is no sample: {line[:60]!r}") from error
    name = f"{path.resolve().parent.name}/{path.name.partition('.')[0]}"  # A client's state folder bears its name.
    return Samples(name, head[1], head[2], head[4], np.array(t_s), np.array(value), np.array(gaps), phase)


def _text(path: Path) -> str:
    data = bytearray()
    try:
        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
            while chunk := reader.read(1 << 20):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ConfigError(f"{path} holds more than {MAX_BYTES >> 20} MiB of samples")
    except (OSError, zstandard.ZstdError) as error:
        raise ConfigError(f"{path} cannot be read as samples: {error}") from error
    return data.decode("ascii", "replace")
