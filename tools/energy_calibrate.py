"""sparsefleet energy calibrate: this board's source beside an external meter, over a ladder of loads.

The meter is another source of this board (--reference plug, i2c, hwmon), read at the same time; or
a CSV of some other machine's meter, in which case the ladder is run first and fitted afterwards.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from edge_client.energy.calibration import fit
from edge_client.energy.meter import Meter
from edge_client.energy.settings import Calibration
from edge_client.energy.source import Scope
from edge_client.energy.step_response import busy
from protocol.durable import replace_file
from protocol.errors import ConfigError

SETTLE_S = 10.0  # More than 25 time constants of a Jetson's sensor.
EDGE_S = 5.0  # Left out at each end of a load, because two clocks differ.


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of the ladder."""

    threads: int
    begin_unix_s: float
    end_unix_s: float
    source_w: float
    reference_w: float | None = None  # None: it is in a CSV.


class Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All loads of one source."""

    source: str
    loads: list[Load]
    reference_scope: Scope = "wall"
    reference_relative: float = 0.03  # k = 2; of a plug, as a rule.


def climb(
    meter: Meter,
    reference: Meter | None,
    seconds: float,
    num_cores: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    load: Callable[[int], AbstractContextManager[None]] = busy,
) -> Ladder:
    """Measure 0, 1, ... all cores busy, `seconds` each.

    Raises:
        ConfigError: the source or the reference had no figure for a load.
    """
    loads = []
    for threads in range((num_cores or os.cpu_count() or 1) + 1):
        with load(threads) if threads else nullcontext():
            sleep(SETTLE_S)
            begin_s = time.time()
            with meter.phase("train"), reference.phase("train") if reference else nullcontext():
                sleep(seconds)
            end_s = time.time()
        loads.append(Load(threads, begin_s, end_s, _mean_w(meter), _mean_w(reference) if reference else None))
    about = reference.source.about if reference else None
    if about is None:
        return Ladder(meter.source.about.name, loads)
    return Ladder(meter.source.about.name, loads, about.scope, about.accuracy.relative)


def _mean_w(meter: Meter) -> float:
    (phase,) = meter.take()
    if phase.energy_j is None:
        raise ConfigError(f"{meter.source.about.name} could not be read for a whole load; the log says why")
    return phase.energy_j / phase.duration_s


def calibrate(ladder: Ladder, reference: Path | None) -> Calibration:
    """Return the fit of a ladder, with the meter's powers from `reference` where the ladder has none.

    Raises:
        ConfigError: the CSV does not cover the loads, or they cannot be fitted.
    """
    measured = [load.reference_w for load in ladder.loads]
    if reference is not None:
        rows = read_reference(reference)
        measured = [_between(rows, load, reference) for load in ladder.loads]
    if None in measured:
        raise ConfigError("the ladder has no reference; give the meter's file with --csv")
    return fit(
        ladder.source,
        ladder.reference_scope,
        [load.source_w for load in ladder.loads],
        [watts for watts in measured if watts is not None],
        ladder.reference_relative,
    )


def read_reference(path: Path) -> list[tuple[float, float]]:
    """Return seconds since 1970 and watts of a CSV with the columns unix_s and watts.

    Raises:
        ConfigError: unreadable, or a line without two numbers.
    """
    try:
        with path.open(newline="") as file:
            return [(float(row["unix_s"]), float(row["watts"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a CSV with columns unix_s and watts ({error!r})") from error


def _between(rows: list[tuple[float, float]], load: Load, path: Path) -> float:
    """Return the mean watts within a load, away from its ends."""
    margin_s = min(EDGE_S, (load.end_unix_s - load.begin_unix_s) / 4)
    within = [w for at_s, w in rows if load.begin_unix_s + margin_s <= at_s <= load.end_unix_s - margin_s]
    if not within:
        raise ConfigError(
            f"{path} has nothing between {load.begin_unix_s:.0f} and {load.end_unix_s:.0f} (unix_s)"
        )
    return sum(within) / len(within)


def save(path: Path, ladder: Ladder) -> None:
    """Write a ladder, to be fitted when the meter's file is there."""
    replace_file(path, json.dumps(msgspec.to_builtins(ladder), indent=1).encode())


def read_ladder(path: Path) -> Ladder:
    """Read what `save` wrote. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ladder)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is no ladder of energy calibrate ({error})") from error


def lines(found: Calibration) -> str:
    """What to write into the client's configuration."""
    fields = msgspec.to_builtins(found)
    return "[meter.calibration]\n" + "\n".join(
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value:.6g}"
        for name, value in fields.items()
    )
