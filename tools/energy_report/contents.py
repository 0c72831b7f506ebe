"""What stands on the page, in which order: a section for each question that an energy report answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tools.energy_report import figures
from tools.energy_report.page import meanings, notes, page, section, table
from tools.energy_report.samples import Samples
from tools.energy_report.timeline import power

Row = dict[str, Any]

WHAT = {"kind": "what it is", "scope": "scope", "source": "source"}
RUNS = {
    "run": "run",
    "method": "method",
    "rounds": "rounds",
    "clients": "clients",
    "accuracy": "accuracy at the end",
    "energy_j": "J, all clients",
    "bytes": "bytes, up and down",
    "target_accuracy": "accuracy that all reached",
    "target_round": "in round",
    "target_j": "J until then",
    "target_bytes": "bytes until then",
    **WHAT,
}
CURVE = {
    "run": "run",
    "round_number": "round",
    "accuracy": "accuracy",
    "loss": "loss",
    "energy_j": "J so far",
    "bytes": "bytes so far",
}
BOARDS = {
    "client_id": "board",
    "run": "run",
    "profile": "profile",
    "kind": "what it is",
    "step_j": "J / step",
    "example_j": "J / example",
    "round_j": "J / round",
    "sent_mb_j": "upload: J / MB sent",
    "power_mean_w": "W, mean",
    "power_peak_w": "W, peak",
    "idle_w": "W, idle",
    "step_s": "s / step",
    "clock_mhz": "MHz, mean",
    "temperature_c": "°C, highest",
    "throttled_s": "s slowed",
    "throttling": "by",
    "rested": "rested",
    "steps": "steps",
    "rounds": "rounds",
    "scope": "scope",
    "source": "source",
}
PHASES = {
    "run": "run",
    "client_id": "board",
    "phase": "phase",
    "rounds": "rounds",
    "duration_s": "s",
    "cpu_s": "CPU s",
    "energy_j": "J",
    "energy_net_j": "J beyond idle",
    "power_mean_w": "W, mean",
    "received_bytes": "bytes received",
    "sent_bytes": "bytes sent",
    "disk_read_bytes": "from disk",
    "disk_written_bytes": "to disk",
    "net_received_bytes": "network in, machine",
    "net_sent_bytes": "out",
    "kind": "what it is",
}
STEPS = {
    "file": "profile",
    "machine": "machine",
    "phase": "phase",
    "of": "of one",
    "density": "density",
    "each_s": "s",
    "each_j": "J",
    "each_net_j": "J beyond idle",
    "power_mean_w": "W, mean",
    "power_peak_w": "W, peak",
    "clock_mhz": "MHz",
    "temperature_c": "°C",
    "throttling": "slowed by",
    **WHAT,
}
POWER = {
    "phase": "phase",
    "begin_s": "at, s",
    "duration_s": "for, s",
    "num_samples": "samples",
    "sampled_j": "J, as sampled",
    "power_mean_w": "W, mean",
    "power_peak_w": "W, peak",
    **WHAT,
}
MOST_ROWS = 200  # Of a table on the page; the CSV has all.


def html(found: Row, samples: Sequence[Samples]) -> str:
    """Return the page of `command.gather`'s numbers."""
    return page("Energy report", _parts(found, samples))


def _parts(found: Row, samples: Sequence[Samples]) -> Iterator[str]:
    yield notes(found["notes"])
    yield (
        "<p>An interval such as 12 ± 1 is k = 2: the truth lies within it 19 times out of 20. "
        "“Unknown” is unknown, never zero. Joules compare only within one kind and one scope. Here are:</p>"
    )
    yield meanings(row["kind"] for name in ("runs", "boards", "steps", "power") for row in found[name])
    if found["runs"]:
        yield from _of_runs(found)
    if found["steps"]:
        yield section(
            "Boards alone: a step by density",
            "What `energy profile` found on one board without a federation: seconds and joules of a training step "
            "by the share of weights that is stored. Bars are uncertainties. Dashed: nothing was measured.",
            figures.steps(found["steps"]),
            [_long(found["steps"], STEPS)],
        )
    for one in samples:
        yield section(
            f"Power over time: {one.name}",
            f"What the client kept of {one.source} ({one.kind}, {one.scope}). The colours are its phases; white is "
            "between them. Joules here are the plain sum of the samples; those of runs are corrected for the sensor.",
            power(one),
            [_long([span for span in found["power"] if span["file"] == one.name], POWER)],
        )


def _of_runs(found: Row) -> Iterator[str]:
    runs, curve = found["runs"], found["curve"]
    yield section(
        "Accuracy against joules",
        "Test accuracy of the global model over all that the clients had spent by then, waiting not counted. "
        "Bars are the uncertainty of the joules. Dashed: nothing was measured.",
        figures.accuracy(runs, curve, "energy_j"),
        [table(runs, RUNS)],
    )
    yield section(
        "Accuracy against bytes",
        "The same accuracy over all that the clients had sent and received by then. Bytes are counted, not modelled.",
        figures.accuracy(runs, curve, "bytes"),
        [_long(curve, CURVE)],
    )
    yield section(
        "Boards side by side",
        "Joules of a training step, joules of a whole round, and mean power (the mark is the highest sample), by "
        "board. Bars are uncertainties. Hatched: nothing was measured. Different panels do not compare.",
        figures.boards(found["boards"]),
        [_long(found["boards"], BOARDS)],
    )
    yield section(
        "Where the joules go",
        "Joules by phase, all clients and rounds; the bar at the end is the uncertainty of the sum. Waiting (idle) is "
        "in the table and not in the figure.",
        figures.phases(found["phases"]),
        [_long(found["phases"], PHASES)],
    )


def _long(rows: Sequence[Row], columns: dict[str, str]) -> str:
    shown = table(rows[:MOST_ROWS], columns)
    return (
        shown
        if len(rows) <= MOST_ROWS
        else f"{shown}<p>{len(rows) - MOST_ROWS} more lines are in the CSV.</p>"
    )
