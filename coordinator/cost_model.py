"""What a training step costs a board, by density: learned from what its own rounds took.

    cost of a step = fixed + slope * density

by least squares over its last rounds, and the densities of its energy profile if there is one. A line
needs two densities that differ by a tenth, or by two fifths of the larger one; until then the mean stands
for every density, which is too much for sparser steps and too little for denser ones. Neither coefficient
is negative: a sparser step is never thought to cost more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

LEAST_SPREAD = 0.1  # Of densities, for a slope;
LEAST_RATIO = 0.4  # or of the larger one, where both are small: a mask and its half.
ROUNDS = 20  # Boards warm up, throttle, and are moved: older rounds say nothing of now.


@dataclass(frozen=True)
class Step:
    """One observation: the mean step of one round, or of one part of a board's profile."""

    density: float
    seconds: float
    joules: float | None  # None: not reported.


@dataclass
class CostModel:
    """One board's."""

    profile: tuple[Step, ...] = ()  # What it took alone (sparsefleet energy profile).
    rounds: deque[Step] = field(default_factory=lambda: deque(maxlen=ROUNDS))

    is_warm: bool = False  # Its first round opens the graph and loads the examples besides.

    def add(self, step: Step) -> None:
        """Take in one round; the first counts only until there is another with joules."""
        if not self.is_warm and self.rounds and step.joules is not None:
            self.is_warm = True
            self.rounds.clear()
        self.rounds.append(step)

    def step_s(self, density: float) -> float | None:
        """Return the seconds of a step; None: nothing is known."""
        return _predicted([(step.density, step.seconds) for step in self._steps()], density)

    def step_j(self, density: float) -> float | None:
        """Return the joules of a step; None: nothing is known."""
        known = [(step.density, step.joules) for step in self._steps() if step.joules is not None]
        return _predicted(known, density)

    def _steps(self) -> list[Step]:
        return [*self.profile, *self.rounds]


def _predicted(points: Iterable[tuple[float, float]], density: float) -> float | None:
    listed = list(points)
    if not listed:
        return None
    x, y = np.array(listed).T
    if x.max() - x.min() < min(LEAST_SPREAD, LEAST_RATIO * x.max()):
        return float(y.mean())
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    fixed = float(y.mean() - slope * x.mean())
    if slope < 0:
        return float(y.mean())
    if fixed < 0:
        return float(x @ y / (x @ x)) * density
    return fixed + slope * density
