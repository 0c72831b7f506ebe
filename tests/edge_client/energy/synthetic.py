"""A board without silicon: a power curve, a sensor in front of it, and the kernel's files behind that.

The sensor is an INA3221 as it is: it averages recursively (first-order low pass), refreshes its
registers every few milliseconds, and rounds to 40 uV over the shunt and 8 mV of the bus. The board
writes real files; whether its clock is real or a number is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_profiles import PowerSource
from edge_client.energy.ina3221 import Ina3221, find

VOLT = 5.0
SPEC = PowerSource("ina3221", ("VDD_IN",), "module_input", tau_s=0.4)


@dataclass
class Segment:
    """Watts from `begin_s` on; `ripple_w` at `ripple_hz` on top, as training steps make it."""

    begin_s: float
    watts: float
    ripple_w: float = 0.0
    ripple_hz: float = 3.0


@dataclass
class Curve:
    """The true power."""

    segments: Sequence[Segment]

    def at(self, now_s: float) -> float:
        """Return watts."""
        segment = self.segments[0]
        for one in self.segments:
            if one.begin_s <= now_s:
                segment = one
        square = 1.0 if math.sin(2 * math.pi * segment.ripple_hz * now_s) >= 0 else -1.0
        return segment.watts + segment.ripple_w * square

    def energy_j(self, begin_s: float, end_s: float) -> float:
        """Return the true joules, exactly: the integral of a square wave is a triangle."""
        total = 0.0
        ends = [*(one.begin_s for one in self.segments[1:]), math.inf]
        for one, until_s in zip(self.segments, ends, strict=True):
            low, high = max(begin_s, one.begin_s), min(end_s, until_s)
            if low < high:
                waves = self._triangle(one, high) - self._triangle(one, low)
                total += one.watts * (high - low) + one.ripple_w * waves
        return total

    @staticmethod
    def _triangle(segment: Segment, at_s: float) -> float:
        period_s = 1 / segment.ripple_hz
        within_s = at_s % period_s
        return min(within_s, period_s - within_s)


@dataclass
class Board:
    """Plays a curve through the files of an Orin Nano's INA3221."""

    root: Path
    curve: Curve
    tau_s: float = 0.4
    period_s: float = 0.0066
    shunt_ohm: float = 0.005
    samples: int = 64
    gain: float = 1.0
    _shown_w: float = field(default=math.nan)
    _at_s: float = 0.0

    def __post_init__(self) -> None:
        """Make the tree."""
        self.folder = self.root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
        self.folder.mkdir(parents=True)
        (self.folder / "in1_label").write_text("VDD_IN\n")
        (self.folder / "shunt1_resistor").write_text(f"{round(self.shunt_ohm * 1e6)}\n")
        (self.folder / "samples").write_text(f"{self.samples if self.tau_s else 1}\n")
        shown_ms = self.tau_s * 1000 if self.tau_s else self.period_s * 1000
        (self.folder / "update_interval").write_text(f"{round(shown_ms)}\n")
        self.play(0.0)

    def play(self, now_s: float) -> None:
        """Bring filter and files up to `now_s`."""
        if math.isnan(self._shown_w):
            self._shown_w = self.curve.at(0.0)
        # The register changes at multiples of the period; between them it stands still.
        while self._at_s + self.period_s <= now_s:
            self._at_s += self.period_s
            power_w = self.curve.at(self._at_s - self.period_s / 2)
            share = 1 - math.exp(-self.period_s / self.tau_s) if self.tau_s else 1.0
            self._shown_w += share * (power_w - self._shown_w)
        step_a = 40e-6 / self.shunt_ohm
        milliamperes = round(self._shown_w * self.gain / VOLT / step_a) * step_a * 1000
        self._write("in1_input", round(VOLT * 1000 / 8) * 8)
        self._write("curr1_input", round(milliamperes))

    def _write(self, name: str, value: int) -> None:
        # In place, at one go: a reader has the file open.
        text = f"{value:<7}\n"
        with (self.folder / name).open("r+" if (self.folder / name).exists() else "w") as file:
            file.write(text)

    def sensor(self) -> Ina3221:
        """Return the product's own reader of these files."""
        found = find(self.root, SPEC)
        assert isinstance(found, Ina3221), found
        return found


class VirtualTime:
    """A clock that the test sets; the board follows it, and the meter samples at its own rate."""

    def __init__(self, play: Callable[[float], None]) -> None:
        """Begin at zero."""
        self.now_s = 0.0
        self._play = play

    def clock(self) -> float:
        """Return the time, having brought the board up to it."""
        self._play(self.now_s)
        return self.now_s

    def work(self, duration_s: float, sample: Callable[[], None], every_s: float, first_s: float) -> None:
        """Let time pass, sampling as the meter's thread would, from `first_s` on."""
        end_s = self.now_s + duration_s
        due_s = self.now_s + first_s
        while due_s < end_s:
            self.now_s = due_s
            sample()
            due_s += every_s
        self.now_s = end_s
