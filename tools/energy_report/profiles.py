"""The numbers of `energy profile` files: seconds and joules of a step by density, of coding by body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError
from tools.energy_profile import SCHEMA
from tools.energy_report.words import kind_of

Row = dict[str, Any]


def read_profile(path: Path) -> list[Row]:
    """Return a line for each part of a board's profile.

    Raises:
        ConfigError: no such file, or not of this schema.
    """
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']!r}")
        return [_part(path.stem, found, part) for part in found["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no board's profile of schema {SCHEMA} ({error!r}); make one with: "
            "sparsefleet energy profile --out FILE"
        ) from error


def _part(name: str, found: Row, part: Row) -> Row:
    idle = found["idle"] or {}
    duration_s, energy_j = part["duration_s"], part["energy_j"]
    return {
        "file": name,
        "machine": found["machine"],
        "profile": found["profile"],
        "source": found["source"]["name"],
        "kind": kind_of(found["source"]["name"]),
        "scope": found["source"]["scope"],
        "model": found["model"],
        "batch": found["batch"],
        "threads": found["threads"],
        "kernels": found["kernels"],
        "phase": part["phase"],
        "of": part["of"],
        "density": part["density"],
        "count": part["count"],
        "each_s": part["duration_s_each"],
        "each_j": part["energy_j_each"],
        "each_uncertainty_j": part["uncertainty_j_each"],
        "each_net_j": part["energy_net_j_each"],
        "power_mean_w": energy_j / duration_s if energy_j is not None and duration_s else None,
        "power_peak_w": part["power_peak_w"],
        "idle_w": idle.get("power_w"),
        "clock_mhz": part["clock_mhz"],
        "temperature_c": part["temperature_c"],
        "throttling": part["throttling"],
    }
