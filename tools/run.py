"""sparsefleet run: coordinate one experiment and show how it goes."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coordinator.experiment import read
from coordinator.launch import authority, launch
from tools.progress import display, joules, size


def run_experiment(options: argparse.Namespace) -> int:
    """Run what the command line says; return the exit code."""
    overrides = tuple(options.set) + ((f"broker.url={options.broker}",) if options.broker else ())
    experiment = read(options.experiment, overrides)
    out = (
        options.resume or options.out or Path("runs") / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )

    def ready(url: str, password: str) -> None:
        if password and not options.json:
            ca = f" --ca {shlex.quote(str(authority(experiment)))}" if url.startswith("mqtts:") else ""
            pairing = (
                "\n  and, for a device that is new, SPARSEFLEET_PAIRING_CODE from: sparsefleet fleet code"
                if ca
                else ""
            )
            print(
                f"broker: {url}, {experiment.cohort.clients} clients needed; start each with\n"
                f"  SPARSEFLEET_PASSWORD={shlex.quote(password)} sparsefleet client --broker {url} "
                f"--client-id NAME --data FILE.npz{ca}{pairing}",
                file=sys.stderr,
                flush=True,
            )

    signal.signal(signal.SIGTERM, _interrupt)  # A service manager's Ctrl-C.
    try:
        with display(experiment.name, options.quiet or options.json) as show:
            summary = launch(experiment, out, options.resume is not None, show, ready)
    except KeyboardInterrupt:
        print(
            f"interrupted; continue with: sparsefleet run {options.experiment} --resume {out}",
            file=sys.stderr,
        )
        return 130
    if options.json:
        print(json.dumps(summary))
    else:
        print_summary(summary)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def print_summary(summary: dict[str, Any]) -> None:
    """Print a run's result: what it reached, and what each phase cost."""
    console = Console()
    accuracy = "not evaluated" if summary["accuracy"] is None else f"{100 * summary['accuracy']:.2f}%"
    console.print(
        f"{summary['run']}: {summary['method']} at density {summary['density']:.3g}, {summary['rounds']} rounds, "
        f"accuracy {accuracy}; up {size(summary['upload_bytes'])}, down {size(summary['download_bytes'])}"
    )
    if summary["alarms"]:
        console.print(f"[bold red]{summary['alarms']} alarms[/]: what is broken stands in events.jsonl")
    table = Table("phase", "time, all clients", "energy", title=f"energy source: {summary['energy_source']}")
    for name, phase in summary["phases"].items():
        table.add_row(name, f"{phase['seconds']:.2f} s", joules(phase["energy_j"], phase["uncertainty_j"]))
    console.print(table)
    for client_id, reasons in summary["resting"].items():
        told = ", ".join(f"{kind} in {rounds} rounds" for kind, rounds in reasons.items())
        console.print(f"{client_id} rested: {told}", highlight=False)
    console.print(f"report: {summary['report']}   model: {summary['model']}", highlight=False)
