"""Files of `sparsefleet energy profile`: what a training step took on a board alone, by density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordinator.cost_model import Step
from protocol.artifact import Manifest
from protocol.errors import ConfigError

SCHEMA = "sparsefleet-energy-profile/1"


class _Part(msgspec.Struct):
    phase: str
    of: str
    density: float
    duration_s_each: float
    energy_j_each: float | None


class _Profile(msgspec.Struct):
    schema: str
    profile: str
    model: str
    num_parameters: int
    batch: int
    parts: list[_Part]


def read(paths: Sequence[str], manifest: Manifest, batch_size: int) -> dict[str, tuple[Step, ...]]:
    """Return the steps of each file, by the name of its device profile.

    Raises:
        ConfigError: unreadable, of another model or batch size, or two files of one board.
    """
    found: dict[str, tuple[Step, ...]] = {}
    for path in paths:
        try:
            profile = msgspec.json.decode(Path(path).read_bytes(), type=_Profile)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"cohort.profiles: {path} is no file of `energy profile --out` ({error})"
            ) from error
        if profile.schema != SCHEMA:
            raise ConfigError(f"cohort.profiles: {path} has schema {profile.schema!r}; {SCHEMA!r} is read")
        measured = (profile.model, profile.num_parameters, profile.batch)
        trained = (manifest.model, manifest.layout.num_trainable, batch_size)
        if measured != trained:
            raise ConfigError(
                f"cohort.profiles: {path} is of {_named(*measured)}, this run trains {_named(*trained)}, whose steps "
                "cost something else. Measure that with `sparsefleet energy profile` if its graph is packaged, or "
                "leave the file out: rounds tell, too"
            )
        if profile.profile in found:
            raise ConfigError(f"cohort.profiles: two files are of {profile.profile}")
        found[profile.profile] = tuple(
            Step(part.density, part.duration_s_each, part.energy_j_each)
            for part in profile.parts
            if part.of == "step"
        )
    return found


def _named(model: str, num_parameters: int, batch_size: int) -> str:
    return f"{model} ({num_parameters:,} parameters) at batch {batch_size}"
