"""From what tests recorded to docs/faults.json and docs/faults.md.

python -m tests.faults.matrix RECORDS             every row, from these records alone
python -m tests.faults.matrix RECORDS --update    rows without a record here keep what stands in docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from protocol.config import load

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"

HEAD = """# The fault matrix

Written by `make faults`, or row by row (`tests/faults/matrix.py --update`). What is not met has no test yet, failed, or
was not run in full. Rows may come from several runs, also on a busy machine. Real processes and brokers.
*Lost*: an update that its client was told is accepted, and that is not in the aggregate. *Double*: counted twice.
An empty cell: the fault has no such figure. The tests are in `tests/faults/matrix.toml`.

| # | fault | trials | lost | double | recovery, s | memory, MB | gate | met |
|---|---|---|---|---|---|---|---|---|
"""


class MatrixRow(msgspec.Struct, forbid_unknown_fields=True):
    """One [[row]]."""

    number: int
    fault: str
    gate: str
    tests: list[str]  # Names of the test functions that must all have recorded and passed.
    pending: str = ""  # What of the gate no test shows yet: the row is not met.


class Matrix(msgspec.Struct, forbid_unknown_fields=True):
    """matrix.toml."""

    row: list[MatrixRow]


def merge(rows: list[MatrixRow], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each row of the matrix, whether anything was recorded for it or not.

    Raises:
        ValueError: a record of a row or test that the matrix does not name.
    """
    named = {(row.number, test) for row in rows for test in row.tests}
    for record in records:
        if (record["number"], record["test"]) not in named:
            raise ValueError(f"matrix.toml does not name {record['test']} in row {record['number']}")
    return [_entry(row, [one for one in records if one["number"] == row.number]) for row in rows]


def _entry(row: MatrixRow, records: list[dict[str, Any]]) -> dict[str, Any]:
    def known(name: str) -> list[float]:
        return [record[name] for record in records if record[name] is not None]

    recorded = {record["test"] for record in records}
    return {
        "fault": f"{row.number}. {row.fault}",
        "trials": sum(known("trials")),
        "lost": sum(known("lost")) if known("lost") else None,
        "double": sum(known("double")) if known("double") else None,
        "recovery_s_max": max(known("recovery_s"), default=None),
        "rss_growth_mb_max": max(known("rss_growth_mb"), default=None),
        "gate": row.gate + (f" (not shown yet: {row.pending})" if row.pending else ""),
        "met": bool(row.tests)
        and recorded == set(row.tests)
        and not row.pending
        and all(record["passed"] and not record["is_partial"] for record in records),
    }


def markdown(entries: list[dict[str, Any]]) -> str:
    """Return the page."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"

    lines = []
    for entry in entries:
        number, _, name = entry["fault"].partition(". ")
        cells = [number, name, *(cell(entry[key]) for key in ("trials", "lost", "double"))]
        cells += [cell(entry["recovery_s_max"]), cell(entry["rss_growth_mb_max"]), entry["gate"]]
        lines.append("| " + " | ".join([*cells, "yes" if entry["met"] else "**no**"]) + " |\n")
    return HEAD + "".join(lines)


def rows_of_matrix() -> list[MatrixRow]:
    """Return the rows of matrix.toml."""
    return load(HERE / "matrix.toml", Matrix).row


def kept(
    made: list[dict[str, Any]], before: list[dict[str, Any]], recorded: set[int]
) -> list[dict[str, Any]]:
    """Return the rows that were recorded, and of the others what stood there before."""
    old = {entry["fault"]: entry for entry in before}
    return [
        entry if int(entry["fault"].partition(".")[0]) in recorded else old.get(entry["fault"], entry)
        for entry in made
    ]


if __name__ == "__main__":
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    made = merge(rows_of_matrix(), records)
    if "--update" in sys.argv:
        before = json.loads((DOCS / "faults.json").read_text())
        made = kept(made, before, {record["number"] for record in records})
    (DOCS / "faults.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    (DOCS / "faults.md").write_text(markdown(made))
    missing = [entry["fault"] for entry in made if not entry["met"]]
    lines = [f"{len(made) - len(missing)} of {len(made)} met", *(f"  not: {one}" for one in missing)]
    sys.stdout.write("\n".join(lines) + "\n")
