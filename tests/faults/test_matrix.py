"""The matrix: no row is ever left out, and none is met without all its tests."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults.matrix import MatrixRow, kept, markdown, merge, rows_of_matrix

ROW = MatrixRow(3, "Broker killed", "none lost", ["test_a", "test_b"])


def record(test: str, **facts) -> dict:
    known = {
        "trials": 1,
        "lost": 0,
        "double": 0,
        "recovery_s": 2.0,
        "rss_growth_mb": None,
        "passed": True,
        "is_partial": False,
    }
    return {"number": 3, "test": test, **known, **facts}


def test_all_31_rows_are_there_in_order():
    assert [row.number for row in rows_of_matrix()] == list(range(1, 32))


def test_every_named_test_exists_and_records_that_row():
    functions = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                functions[node.name] = ast.unparse(node)
    for row in rows_of_matrix():
        for test in row.tests:
            assert f"fault({row.number})" in functions.get(test, ""), f"row {row.number}: {test}"


def test_a_row_without_tests_is_not_met_and_not_left_out():
    (entry,) = merge([MatrixRow(9, "f", "g", [])], [])
    assert (entry["met"], entry["trials"], entry["gate"]) == (False, 0, "g")
    assert set(entry) == {
        "fault",
        "trials",
        "lost",
        "double",
        "recovery_s_max",
        "rss_growth_mb_max",
        "gate",
        "met",
    }


def test_figures_are_summed_and_the_worst_is_kept():
    records = [record("test_a", trials=5, lost=1), record("test_b", recovery_s=7.5, rss_growth_mb=3.0)]
    (entry,) = merge([ROW], records)
    assert (entry["trials"], entry["lost"], entry["double"]) == (6, 1, 0)
    assert (entry["recovery_s_max"], entry["rss_growth_mb_max"], entry["met"]) == (7.5, 3.0, True)
    assert "| 3 | Broker killed | 6 | 1 | 0 | 7.5 | 3 | none lost | yes |" in markdown([entry])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("test_a")],
        [record("test_a"), record("test_b", passed=False)],
        [record("test_a"), record("test_b", is_partial=True)],
    ],
)
def test_a_row_is_not_met_when_a_test_is_missing_failed_or_partial(records):
    (entry,) = merge([ROW], records)
    assert not entry["met"]
    assert "**no**" in markdown([entry])


def test_a_row_of_which_something_is_pending_is_not_met_and_says_what():
    row = MatrixRow(3, "f", "all", ["test_a"], pending="signed messages")
    (entry,) = merge([row], [record("test_a")])
    assert (entry["met"], entry["gate"]) == (False, "all (not shown yet: signed messages)")


def test_a_record_that_the_matrix_does_not_name_is_an_error():
    with pytest.raises(ValueError, match="does not name test_c in row 3"):
        merge([ROW], [record("test_c")])


def test_a_failing_test_is_recorded_as_failed(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_good(fault):\n    fault(3).trials = 2\n\n"
        "def test_bad(fault):\n    fault(4).recovered(1.5)\n    assert False\n"
    )
    records = tmp_path / "records"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.faults.record",
        "-c",
        "/dev/null",
        str(tmp_path),
    ]
    environment = {"PYTHONPATH": str(ROOT), "SPARSEFLEET_FAULTS": str(records), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    good, bad = [json.loads(line) for line in records.read_text().splitlines()]
    assert (good["number"], good["test"], good["trials"], good["passed"]) == (3, "test_good", 2, True)
    assert (bad["number"], bad["recovery_s"], bad["passed"]) == (4, 1.5, False)


def test_an_update_touches_only_rows_that_were_recorded():
    made = [{"fault": "1. a", "met": False}, {"fault": "2. b", "met": True}, {"fault": "10. c", "met": False}]
    before = [{"fault": "1. a", "met": True}, {"fault": "2. b", "met": False}]
    assert kept(made, before, {2}) == [before[0], made[1], made[2]]
