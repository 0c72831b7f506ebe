"""The options of `sparsefleet energy report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folders, folders of them (a demo's), profiles of `energy profile --out`",
    )
    parser.add_argument(
        "--samples",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="samples that a client kept; repeatable",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page; FILE.json and FILE-*.csv are written beside it",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers")

    def run(options: argparse.Namespace) -> int:
        from tools.energy_report.command import report  # It needs the coordinator, which a board has not.

        return report(options)

    parser.set_defaults(run=run)
