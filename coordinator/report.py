"""The run folder: what a run leaves behind, and the numbers in it.

    config.toml     the resolved experiment       events.jsonl   what happened, one object a line
    rounds.csv      one line per round            devices.csv    one line per device, round and phase
    checkpoint.bin  for --resume                  model.onnx     the final model, for any onnxruntime
    weights.npz     the same weights by name      summary.json   the run in one object

Lines are appended as they become known, so an interrupted run keeps its figures. Units are in the
names; `energy_source` says what produced a figure, and an empty cell is "unknown", never zero.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from coordinator.experiment import Experiment, shown
from protocol.config import dumps
from protocol.durable import replace_file
from protocol.messages import Phase

log = logging.getLogger(__name__)

CONFIG, ROUNDS, DEVICES, EVENTS, SUMMARY = (
    "config.toml",
    "rounds.csv",
    "devices.csv",
    "events.jsonl",
    "summary.json",
)


IDLE = "idle"  # Waiting is listed and not part of any total: it is not the work's cost.


@dataclass(frozen=True)
class RoundRow:
    """One line of rounds.csv."""

    round_number: int
    stage: str
    accuracy: float | None  # None: not evaluated in this round, or a regression.
    loss: float | None  # None: not evaluated in this round.
    train_loss: float | None  # Mean over clients, by examples.
    density: float  # Of the global prunable weights.
    cohort: int
    updates: int
    dropouts: int
    stragglers: int
    rejected: int
    upload_bytes: int  # Bodies of accepted updates.
    upload_bound_bytes: int  # log2 C(prunable, stored) bits, values at their width, and side data.
    download_bytes: int  # Application bytes that clients received for this round.
    energy_j: (
        float | None
    )  # Of all clients, receive to encode (upload follows in devices.csv); None: unknown.
    energy_uncertainty_j: float | None
    duration_s: float
    empty_layers: int  # Prunable tensors without a stored weight: a collapsed layer shows here.
    min_layer_density: float | None = None  # Of the tensor that lost most.
    union_density: float | None = None  # Of what travels down: above `density` where clients' masks differ.
    control_sum: float | None = None  # Largest entry of the clients' summed control variates; None: no such.
    late: int = 0  # Updates that came after their round, and did not count.
    stale: int = 0  # Updates that counted, begun in an earlier round (asynchronous mode).
    alarms: int = 0  # Broken invariants, each named in events.jsonl.
    resting: int = 0  # Devices that were not asked for their own good; why stands in events.jsonl.


@dataclass(frozen=True)
class DeviceRow:
    """One line of devices.csv: one phase of one client in one round."""

    round_number: int
    client_id: str
    phase: str
    duration_s: float
    cpu_s: float
    energy_j: float | None
    uncertainty_j: float | None
    energy_source: str
    received_bytes: int
    sent_bytes: int
    peak_rss_bytes: int | None  # Of the process so far; None with the upload, which is reported later.
    runtime: str
    kernels: str
    energy_scope: str = ""
    energy_raw_j: float | None = None  # Before the correction for the sensor's low pass.
    energy_net_j: float | None = None  # Beyond the idle board.
    net_uncertainty_j: float | None = None
    power_peak_w: float | None = None
    coverage: float | None = None  # Share of the phase for which there are samples.
    pooled: str = ""  # Phases too short for the sensor, measured as one.
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttling: str = ""
    meter_cpu_s: float | None = None
    num_steps: int = 0  # Training steps within the phase, and the examples that they saw.
    num_examples: int = 0
    battery_percent: float | None = None  # At its end.
    energy_warning: str = ""  # The sensor spoke, and is not to be believed.
    disk_read_bytes: int | None = None  # Of the client's process.
    disk_written_bytes: int | None = None
    net_received_bytes: int | None = None  # Of the whole machine.
    net_sent_bytes: int | None = None
    density: float | None = None  # Of the prunable weights that it was asked to train.


@dataclass
class PhaseTotal:
    """One phase summed over clients and rounds."""

    duration_s: float = 0.0
    energy_j: float | None = 0.0
    uncertainty_j: float = 0.0  # Summed, not in quadrature: errors of a model point the same way.


@dataclass
class Totals:
    """Running sums of a run, for the summary and the table."""

    upload_bytes: int = 0
    download_bytes: int = 0
    phases: dict[str, PhaseTotal] = field(default_factory=lambda: defaultdict(PhaseTotal))
    sources: set[str] = field(default_factory=set)
    peak_rss_bytes: int = 0

    @property
    def energy_j(self) -> float | None:
        """Joules of all clients and phases but waiting; None if any of them is unknown."""
        known = [total.energy_j for name, total in self.phases.items() if name != IDLE]
        return None if not known or None in known else sum(energy for energy in known if energy is not None)

    def add(self, row: DeviceRow) -> None:
        """Count one phase."""
        total = self.phases[row.phase]
        total.duration_s += row.duration_s
        if row.energy_j is None or total.energy_j is None:
            total.energy_j = None
        else:
            total.energy_j += row.energy_j
            total.uncertainty_j += row.uncertainty_j or 0.0
        self.sources.add(row.energy_source)
        self.peak_rss_bytes = max(self.peak_rss_bytes, row.peak_rss_bytes or 0)
        self.upload_bytes += row.sent_bytes
        self.download_bytes += row.received_bytes


class RunFolder:
    """Writes a run's files."""

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        next_round: int | None = None,
        accepted: Collection[str] = (),
    ) -> None:
        """Make the folder, or continue in it with `next_round`.

        What was written of that round is forgotten, but for clients whose updates were `accepted` in it: it was
        under way when the run stopped, and the others do it again.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        if next_round is not None:
            _keep_before(path / ROUNDS, next_round)
            _keep_before(path / DEVICES, next_round, accepted)
        self.totals = Totals()
        self.recorded: set[str] = set()  # Of `accepted`: whose lines are there.
        self._columns: dict[Path, list[str]] = {}
        self._waiting: dict[Path, str] = {}  # Lines that a full disk did not take.
        replace_file(path / CONFIG, dumps(shown(experiment)).encode())
        for line in read_csv(path / DEVICES):
            row = parse_device_row(line)
            self.totals.add(row)
            if row.round_number == next_round:
                self.recorded.add(row.client_id)

    def round(self, row: RoundRow) -> None:
        """Append to rounds.csv."""
        self._rows(self.path / ROUNDS, [asdict(row)])

    def devices(self, rows: Iterable[DeviceRow]) -> None:
        """Append to devices.csv, and count."""
        listed = list(rows)
        for row in listed:
            self.totals.add(row)
            if row.energy_warning:
                where = {"client": row.client_id, "round": row.round_number, "phase": row.phase}
                self.event("energy-warning", **where, source=row.energy_source, reason=row.energy_warning)
        self._rows(self.path / DEVICES, [asdict(row) for row in listed])

    def event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl; the wall clock is for people, nothing decides by it."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **details}
        self._append(self.path / EVENTS, json.dumps(line) + "\n")

    def _rows(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Append lines of a CSV file, in the columns that it was begun with."""
        if not rows:
            return
        text = io.StringIO(newline="")
        if path not in self._columns:
            self._columns[path] = _header(path) or list(rows[0])
            if not path.is_file():
                csv.writer(text).writerow(self._columns[path])
        csv.DictWriter(text, self._columns[path], extrasaction="ignore").writerows(rows)
        self._append(path, text.getvalue())

    def _append(self, path: Path, text: str) -> None:
        """Append whole lines; where the disk is full they wait for the next call, and none is cut short."""
        self._waiting[path] = self._waiting.get(path, "") + text
        for each, waiting in list(self._waiting.items()):
            size = each.stat().st_size if each.is_file() else 0
            try:
                with each.open("a", newline="") as file:
                    file.write(waiting)
            except OSError as error:
                log.error("a line waits path=%s reason=%s", each, error)
                with contextlib.suppress(OSError):
                    os.truncate(each, size)
                return
            del self._waiting[each]


def rests(folder: Path) -> dict[str, dict[str, int]]:
    """Return in how many rounds each device rested, by the kind of the reason; none where nobody did."""
    found: dict[str, dict[str, int]] = {}
    path = folder / EVENTS
    for line in path.read_text().splitlines() if path.is_file() else []:
        event = json.loads(line)
        for client_id, reason in event.get("resting", {}).items() if event["event"] == "round-opened" else ():
            kinds = found.setdefault(client_id, {})
            kind = str(reason).partition(":")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
    return found


def device_rows(
    round_number: int,
    client_id: str,
    phases: Iterable[Phase],
    peak_rss_bytes: int | None,
    runtime: str,
    kernels: str,
    density: float | None = None,
) -> list[DeviceRow]:
    """Return a client's phases as lines."""
    return [
        DeviceRow(
            round_number=round_number,
            client_id=client_id,
            peak_rss_bytes=peak_rss_bytes,
            runtime=runtime,
            kernels=kernels,
            density=density,
            **{f.name: getattr(phase, f.name) for f in fields(DeviceRow) if hasattr(phase, f.name)},
        )
        for phase in phases
    ]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return a file's lines by column; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def parse_device_row(line: dict[str, str]) -> DeviceRow:
    """Parse one line of devices.csv."""
    convert: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
        "int | None": lambda text: int(text) if text else None,
    }
    # A folder of an older version lacks the newer columns.
    return DeviceRow(
        **{
            f.name: convert[str(f.type)](line[f.name])
            for f in fields(DeviceRow)
            if line.get(f.name) is not None
        }
    )


def _keep_before(path: Path, number: int, clients: Collection[str] = ()) -> None:
    """Remove lines of this round (but for these clients) and later ones, and a last line that was cut short."""
    header = _header(path)
    if header is None:
        return
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    place = header.index("round_number") if "round_number" in header else 0
    client = header.index("client_id") if "client_id" in header else None

    def stays(line: list[str]) -> bool:
        if len(line) != len(header):
            return False
        is_accepted = client is not None and int(line[place]) == number and line[client] in clients
        return int(line[place]) < number or is_accepted

    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *filter(stays, lines)])
    replace_file(path, text.getvalue().encode())


def _header(path: Path) -> list[str] | None:
    """The columns of a file that was begun."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        return next(csv.reader(file), None)
