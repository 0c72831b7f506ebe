"""The numbers of run folders: what each run reached at what price, and each board's part in it.

Uncertainties (k = 2) are added, not in quadrature: errors of one source point the same way. A sum
with an unknown part is unknown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coordinator.experiment import Experiment
from coordinator.report import (
    CONFIG,
    DEVICES,
    EVENTS,
    IDLE,
    ROUNDS,
    DeviceRow,
    parse_device_row,
    read_csv,
    rests,
)
from protocol.config import load
from protocol.errors import ConfigError
from tools.energy_report.words import kind_of, the_one

Row = dict[str, Any]
MEGABYTE = 1e6
TRAIN, UPLOAD = "train", "upload"
TRAFFIC = ("disk_read_bytes", "disk_written_bytes", "net_received_bytes", "net_sent_bytes")


def run_folders(path: Path) -> list[Path]:
    """Return the run folder at `path`, or those within it (a demo's).

    Raises:
        ConfigError: there is none.
    """
    if (path / ROUNDS).is_file():
        return [path]
    found = sorted(entry.parent for entry in path.glob(f"*/{ROUNDS}")) if path.is_dir() else []
    if not found:
        raise ConfigError(
            f"{path} holds no {ROUNDS}: give a run folder, as `sparsefleet run` and `sparsefleet demo` write it, "
            "or a profile of `sparsefleet energy profile --out`"
        )
    return found


class Run:
    """One run folder, read."""

    def __init__(self, path: Path, label: str) -> None:
        """Read it. Raises ConfigError: a file of it is damaged."""
        self.path, self.label = path, label
        self.method = str(load(path / CONFIG, Experiment).method["name"])
        try:
            self.rounds = read_csv(path / ROUNDS)
            self.rows = [parse_device_row(line) for line in read_csv(path / DEVICES)]
            events = (path / EVENTS).read_text().splitlines() if (path / EVENTS).is_file() else []
            said = [json.loads(line) for line in events]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read as a run folder: {error!r}") from error
        self.joined = {event["client"]: event for event in said if event.get("event") == "client-joined"}
        self.rests = rests(path)
        self.work = [row for row in self.rows if row.phase != IDLE]

    @property
    def source(self) -> Row:
        """What produced its joules."""
        sources = {row.energy_source for row in self.work}
        return {
            "source": ", ".join(sorted(sources)),
            "kind": the_one(kind_of(source) for source in sources),
            "scope": the_one(row.energy_scope for row in self.work),
        }

    def curve(self) -> list[Row]:
        """Return a line for each round: what has been spent when its model was there."""
        spent: dict[int, list[DeviceRow]] = defaultdict(list)
        for row in self.work:
            spent[row.round_number].append(row)
        energy_j: float | None = 0.0
        uncertainty_j, num_bytes = 0.0, 0
        lines = []
        for line in self.rounds:
            number = int(line["round_number"])
            round_j, round_uncertainty_j = joules(spent[number])
            energy_j = None if energy_j is None or round_j is None else energy_j + round_j
            uncertainty_j += round_uncertainty_j or 0.0
            num_bytes += sum(row.sent_bytes + row.received_bytes for row in spent[number])
            lines.append(
                {
                    "run": self.label,
                    "round_number": number,
                    "stage": line["stage"],
                    "accuracy": float(line["accuracy"]) if line["accuracy"] else None,
                    "loss": float(line["loss"]) if line["loss"] else None,
                    "energy_j": energy_j,
                    "uncertainty_j": None if energy_j is None else uncertainty_j,
                    "bytes": num_bytes,
                }
            )
        return lines

    def boards(self) -> list[Row]:
        """Return a line for each client: joules by step, example, round and megabyte."""
        by_client: dict[str, list[DeviceRow]] = defaultdict(list)
        for row in self.work:
            by_client[row.client_id].append(row)
        return [self._board(client, by_client[client]) for client in sorted(by_client)]

    def _board(self, client_id: str, rows: Sequence[DeviceRow]) -> Row:
        steps = [row for row in rows if row.phase == TRAIN and row.num_steps]
        num_steps, num_examples = sum(r.num_steps for r in steps), sum(r.num_examples for r in steps)
        uploads = [row for row in rows if row.phase == UPLOAD]
        rounds = len({row.round_number for row in rows})
        total_j, seconds = joules(rows)[0], sum(row.duration_s for row in rows)
        join = self.joined.get(client_id, {})
        return {
            "run": self.label,
            "client_id": client_id,
            "profile": join.get("profile", ""),
            "source": the_one(row.energy_source for row in rows),
            "kind": the_one(kind_of(row.energy_source) for row in rows),
            "scope": the_one(row.energy_scope for row in rows),
            "power_mode": join.get("power_mode", ""),
            "runtime": the_one(row.runtime for row in rows),
            "kernels": the_one(row.kernels for row in rows),
            "rounds": rounds,
            "steps": num_steps,
            "examples": num_examples,
            **each("step", steps, num_steps),
            **each("example", steps, num_examples),
            **each("round", rows, rounds),
            **each("sent_mb", uploads, sum(row.sent_bytes for row in uploads) / MEGABYTE),
            "step_s": sum(row.duration_s for row in steps) / num_steps if num_steps else None,
            "power_mean_w": total_j / seconds if total_j is not None and seconds else None,
            "power_peak_w": highest(row.power_peak_w for row in rows),
            "idle_w": join.get("idle_w"),
            "idle_uncertainty_w": join.get("idle_uncertainty_w"),
            "clock_mhz": mean((row.clock_mhz, row.duration_s) for row in rows),
            "temperature_c": highest(row.temperature_c for row in rows),
            "throttled_s": sum(row.duration_s for row in rows if row.throttling),
            "throttling": ",".join(
                sorted({flag for row in rows for flag in row.throttling.split(",") if flag})
            ),
            "pooled_s": sum(row.duration_s for row in rows if row.pooled),
            "rested": ", ".join(f"{kind} in {n} rounds" for kind, n in self.rests.get(client_id, {}).items()),
            "warnings": "; ".join(sorted({row.energy_warning for row in rows if row.energy_warning})),
            "meter_cpu_share": mean((share(row.meter_cpu_s, row.duration_s), row.duration_s) for row in rows),
        }

    def phases(self) -> list[Row]:
        """Return a line for each client and phase, waiting included."""
        groups: dict[tuple[str, str], list[DeviceRow]] = defaultdict(list)
        for row in self.rows:
            groups[row.client_id, row.phase].append(row)
        return [self._phase(client, phase, rows) for (client, phase), rows in sorted(groups.items())]

    def _phase(self, client_id: str, phase: str, rows: Sequence[DeviceRow]) -> Row:
        energy_j, uncertainty_j = joules(rows)
        seconds = sum(row.duration_s for row in rows)
        net = [row.energy_net_j for row in rows]
        return {
            "run": self.label,
            "client_id": client_id,
            "phase": phase,
            "kind": the_one(kind_of(row.energy_source) for row in rows),
            "scope": the_one(row.energy_scope for row in rows),
            "rounds": len(rows),
            "duration_s": seconds,
            "cpu_s": sum(row.cpu_s for row in rows),
            "energy_j": energy_j,
            "uncertainty_j": uncertainty_j,
            "energy_net_j": None if None in net else sum(value or 0.0 for value in net),
            "power_mean_w": energy_j / seconds if energy_j is not None and seconds else None,
            "received_bytes": sum(row.received_bytes for row in rows),
            "sent_bytes": sum(row.sent_bytes for row in rows),
            **{name: known_sum(getattr(row, name) for row in rows) for name in TRAFFIC},
        }


def joules(rows: Iterable[DeviceRow]) -> tuple[float | None, float | None]:
    """Return the sum and its uncertainty; None if there is nothing, or if a part is unknown."""
    listed = list(rows)
    known = [row.energy_j for row in listed if row.energy_j is not None]
    if not listed or len(known) < len(listed):
        return None, None
    return sum(known), sum(row.uncertainty_j or 0.0 for row in listed)


def each(name: str, rows: Sequence[DeviceRow], count: float) -> Row:
    """Return joules by one of `count`, with their uncertainty."""
    energy_j, uncertainty_j = joules(rows)
    return {
        f"{name}_j": energy_j / count if energy_j is not None and count else None,
        f"{name}_uncertainty_j": uncertainty_j / count if uncertainty_j is not None and count else None,
    }


def known_sum(values: Iterable[int | None]) -> int | None:
    """Return the sum, None if a part is unknown."""
    listed = list(values)
    return None if None in listed else sum(value or 0 for value in listed)


def highest(values: Iterable[float | None]) -> float | None:
    """Return the largest that is known."""
    return max((value for value in values if value is not None), default=None)


def share(part: float | None, whole: float) -> float | None:
    """Return part / whole, None where it is unknown."""
    return part / whole if part is not None and whole > 0 else None


def mean(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Return the mean of (value, weight), of those that are known."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total > 0 else None


def summaries(runs: Sequence[Run], curve: Sequence[Row]) -> list[Row]:
    """Return a line for each run, with its price of the accuracy that all of them reached."""
    best = [highest(point["accuracy"] for point in curve if point["run"] == run.label) for run in runs]
    known = [value for value in best if value is not None]
    target = min(known) if known else None
    return [_summary(run, [point for point in curve if point["run"] == run.label], target) for run in runs]


def _summary(run: Run, points: Sequence[Row], target: float | None) -> Row:
    last: Row = points[-1] if points else {}
    accuracies = [point["accuracy"] for point in points if point["accuracy"] is not None]
    there: Row = {}
    if target is not None:
        there = next((p for p in points if p["accuracy"] is not None and p["accuracy"] >= target), {})
    return {
        "run": run.label,
        "path": str(run.path),
        "method": run.method,
        "rounds": len(points),
        "clients": len({row.client_id for row in run.rows}),
        **run.source,
        "accuracy": accuracies[-1] if accuracies else None,
        "energy_j": last.get("energy_j"),
        "uncertainty_j": last.get("uncertainty_j"),
        "bytes": last.get("bytes"),
        "target_accuracy": target,
        "target_round": there.get("round_number"),
        "target_j": there.get("energy_j"),
        "target_uncertainty_j": there.get("uncertainty_j"),
        "target_bytes": there.get("bytes"),
    }
