"""Put the report together: numbers, CSV and JSON of them, and the page."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol.durable import replace_file
from protocol.errors import ConfigError
from tools.energy_report.numbers import Run, run_folders, summaries
from tools.energy_report.profiles import read_profile
from tools.energy_report.samples import Samples, read_samples
from tools.energy_report.words import MIXED

Row = dict[str, Any]
SCHEMA = "sparsefleet-energy-report/1"
TABLES = ("runs", "curve", "boards", "phases", "steps", "power")


def report(options: argparse.Namespace) -> int:
    """Write what was asked for; return the exit code.

    Raises:
        ConfigError: nothing to report of, an input that is none, or an --out that cannot be written.
    """
    if not options.inputs and not options.samples:
        raise ConfigError("give a run folder, a board's profile, or --samples FILE")
    if options.out is None and not options.json:
        raise ConfigError("give --out report.html for the page, or --json for the numbers alone")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: the folder does not exist")
    samples = [read_samples(path) for path in options.samples]
    found = gather(options.inputs, samples)
    if options.out is not None:
        _write(options.out, found, samples)
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"{options.out}: {len(found['runs'])} runs, {len(found['boards'])} boards; its numbers lie beside it"
        )
    return 0


def _write(out: Path, found: Row, samples: Sequence[Samples]) -> None:
    from tools.energy_report.contents import html  # It needs matplotlib.

    replace_file(out, html(found, samples).encode())
    replace_file(out.with_suffix(".json"), json.dumps(found, indent=1).encode())
    for name in TABLES:
        if found[name]:
            replace_file(out.with_name(f"{out.stem}-{name}.csv"), as_csv(found[name]).encode())


def gather(inputs: Sequence[Path], samples: Sequence[Samples]) -> Row:
    """Return all numbers of the report, as `--json` prints them (docs/energy_report.md).

    Raises:
        ConfigError: an input is neither a run folder nor a board's profile, or is given twice.
    """
    profiles = [path for path in inputs if path.suffix == ".json" and not path.is_dir()]
    folders = [folder for path in inputs if path not in profiles for folder in run_folders(path)]
    runs = [Run(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    curve = [point for run in runs for point in run.curve()]
    found: Row = {
        "schema": SCHEMA,
        "runs": summaries(runs, curve),
        "curve": curve,
        "boards": [board for run in runs for board in run.boards()],
        "phases": [phase for run in runs for phase in run.phases()],
        "steps": [part for path in profiles for part in read_profile(path)],
        "power": [span for one in samples for span in one.spans()],
    }
    return {**found, "notes": _notes(found)}


def _labels(folders: Sequence[Path]) -> list[str]:
    """Name each run by its folder; where two are called alike, by as much of the path as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        labels = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(labels)) == len(labels):
            return labels
    if folders:
        raise ConfigError("a run folder is given twice")
    return []


def _notes(found: Row) -> list[str]:
    """What must be known before figures are compared."""
    told = []
    ways = {(run["kind"], run["scope"]) for run in found["runs"]}
    if len(ways) > 1 or any(MIXED in way for way in ways):
        listed = "; ".join(f"{run['run']}: {run['kind']}, {run['scope']}" for run in found["runs"])
        told.append(f"Joules of different kinds or scopes do not compare: {listed}.")
    for board in found["boards"]:
        name = f"{board['client_id']} in {board['run']}"
        if board["throttled_s"]:
            told.append(
                f"{name} was slowed for {board['throttled_s']:.0f} s ({board['throttling']}): its joules a step are "
                "those of a board that is too hot, or badly supplied."
            )
        if board["warnings"]:
            told.append(f"The joules of {name} are not to be believed: {board['warnings']}.")
        if board["round_j"] is None:
            told.append(f"The joules of {name} are unknown, at least of one phase; so are sums with them.")
    return told


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
