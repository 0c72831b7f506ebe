"""The fixture `fault`, by which any test records its row of the fault matrix (a pytest plugin).

    def test_...(fault):
        row = fault(3)
        row.trials, row.lost, row.double = 20, 0, 0
        row.recovered(1.7)

A row counts as met only if every test that matrix.toml names for it has recorded and passed. With
SPARSEFLEET_FAULTS=FILE, as `make faults` sets it, only tests with this fixture run, with all their trials,
and append to the file; without it nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

VARIABLE = "SPARSEFLEET_FAULTS"
_passed = pytest.StashKey[bool]()


@dataclass
class Row:
    """What one test measured of one fault. None: it says nothing about this figure."""

    number: int
    test: str
    trials: int = 0
    lost: int | None = None  # Accepted by receipt, and not in the aggregate.
    double: int | None = None  # Counted twice.
    recovery_s: float | None = None  # The longest.
    rss_growth_mb: float | None = None  # The largest, 10^6 bytes.
    is_partial: bool = False  # Shorter or fewer than the gate asks for: shown, but not met.

    def recovered(self, seconds: float) -> None:
        """Note how long one recovery took."""
        self.recovery_s = max(self.recovery_s or 0.0, seconds)

    def grew(self, num_bytes: float) -> None:
        """Note by how much one process grew."""
        self.rss_growth_mb = max(self.rss_growth_mb or 0.0, num_bytes / 1e6)


def full(most: int, few: int) -> int:
    """Return the number of trials: all for `make faults`, a few in other test runs."""
    return most if VARIABLE in os.environ else few


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Row]]:
    """Return a function from a row's number to the row, recorded when the test has ended."""
    rows: list[Row] = []

    def row(number: int) -> Row:
        rows.append(Row(number, request.node.originalname))
        return rows[-1]

    yield row
    path = os.environ.get(VARIABLE)
    if path:
        has_passed = request.node.stash.get(_passed, False)
        with Path(path).open("a") as file:
            file.writelines(json.dumps({**asdict(one), "passed": has_passed}) + "\n" for one in rows)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the tests of the matrix when it is to be written."""
    if VARIABLE in os.environ:
        others = [item for item in items if "fault" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[object]:
    """Let the fixture know how its test ended."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report
