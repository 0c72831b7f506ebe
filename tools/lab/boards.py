"""Boards of unequal cost for the lab: joules and seconds are numbers of the lab file, not measurements.

    [[boards]]
    name = "zero2w"
    count = 5            # clients; all boards' together are data.clients
    step_s = 0.8         # of a dense training step
    step_j = 1.6
    fixed = 0.2          # share of a step that does not shrink with density

Each client's meter counts them, on a clock of its own, so that all that the coordinator is told of cost
comes from here; `energy_source` is `model:lab(<name>)`. Training itself is real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from edge_client.energy.meter import Meter
from edge_client.energy.source import About, Accuracy, Reading
from edge_client.runtime import Backend, Runtime
from protocol.artifact import Manifest
from protocol.method import Batch
from protocol.sparse import SparseVector


class Board(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One kind of board."""

    name: str
    count: Annotated[int, msgspec.Meta(ge=1)]
    step_s: Annotated[float, msgspec.Meta(gt=0)]
    step_j: Annotated[float, msgspec.Meta(gt=0)]
    fixed: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2


class ModelledBoard:
    """One client's: a sensor, a clock, and a backend that moves both."""

    def __init__(self, board: Board) -> None:
        """Nothing has been spent."""
        self.about = About(
            name=f"model:lab({board.name})",
            quantity="energy",
            scope="model",
            covers="training steps, at the lab file's joules",
            leaves_out="all that a real board is",
            accuracy=Accuracy(relative=0.0),
            is_net=True,
        )
        self._board = board
        self._spent_s = self._spent_j = 0.0
        self.meter = Meter(self, clock=lambda: self._spent_s, cpu_time=lambda: self._spent_s)

    def read(self) -> Reading:
        """See Sensor."""
        return Reading(self._spent_j)

    def step(self, density: float) -> None:
        """Spend a training step."""
        share = self._board.fixed + (1 - self._board.fixed) * density
        self._spent_s += share * self._board.step_s
        self._spent_j += share * self._board.step_j

    def backend(self, inner: Backend) -> Backend:
        """Return `inner`, whose steps this board pays for."""

        def open_(manifest: Manifest, folder: Path, saved: str) -> Runtime:
            return cast(Runtime, _Paid(inner.open(manifest, folder, saved), self))

        return Backend(inner.name, open_)


class _Paid:
    """A runtime whose steps a board pays for."""

    def __init__(self, inner: Runtime, board: ModelledBoard) -> None:
        self._inner, self._board = inner, board
        self._density = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def bind(self, model: SparseVector) -> None:
        self._inner.bind(model)
        self._density = model.mask.density

    def step(self, batch: Batch, temperature: float = 1.0) -> float:
        self._board.step(self._density)
        return self._inner.step(batch, temperature)
