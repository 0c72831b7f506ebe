"""What a run looks like while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from coordinator.report import RoundRow
from coordinator.service import Progress

ROWS = 12  # Rounds that stay in view.


class Show(Protocol):
    """Takes each step of a run."""

    def __call__(self, progress: Progress) -> None:
        """Show it."""


@contextmanager
def display(title: str, is_quiet: bool = False) -> Iterator[Show]:
    """Show a run on standard error, as fits where that leads."""
    if is_quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with Live(console=Console(stderr=True), refresh_per_second=4, transient=False) as live:
            yield _LiveTable(title, live)
    else:
        yield _lines(title)


def _lines(title: str) -> Show:
    """One line for each closed round."""

    def show(progress: Progress) -> None:
        if progress.row is not None:
            cells = ", ".join(
                f"{name} {value}" for name, value in zip(COLUMNS, cells_of(progress.row), strict=True)
            )
            print(f"{title}: {cells}", file=sys.stderr, flush=True)

    return show


class _LiveTable:
    """The last rounds as a table, and the open one below it."""

    def __init__(self, title: str, live: Live) -> None:
        self._title, self._live = title, live
        self._rows: list[RoundRow] = []

    def __call__(self, progress: Progress) -> None:
        if progress.row is not None:
            self._rows.append(progress.row)
        caption = f"round {progress.round_number} of {progress.rounds}: {progress.done} of {progress.cohort} updates"
        table = Table(*COLUMNS, title=self._title, caption=caption)
        for row in self._rows[-ROWS:]:
            table.add_row(*cells_of(row))
        self._live.update(table)


COLUMNS = ("round", "stage", "accuracy", "loss", "updates", "up", "down", "energy", "time")


def cells_of(row: RoundRow) -> list[str]:
    """One round in the units that people read."""
    return [
        str(row.round_number),
        row.stage,
        "-" if row.accuracy is None else f"{100 * row.accuracy:.1f}%",
        "-" if row.loss is None else f"{row.loss:.4f}",
        f"{row.updates}/{row.cohort}",
        size(row.upload_bytes),
        size(row.download_bytes),
        joules(row.energy_j, row.energy_uncertainty_j),
        f"{row.duration_s:.2f} s",
    ]


def size(num_bytes: float) -> str:
    """Bytes with a decimal prefix."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def joules(energy_j: float | None, uncertainty_j: float | None) -> str:
    """Energy with its uncertainty; "unknown" is never zero."""
    if energy_j is None:
        return "unknown"
    return f"{energy_j:.3g} ± {uncertainty_j or 0.0:.1g} J"
