"""Profile, its files, and how a board is recognised.

A board names itself in its device tree. The model text is asked first, because an Orin NX on a
developer kit's carrier may carry an Orin Nano's string in `compatible`; `compatible` is asked
where the model text says nothing known, as on other makers' carriers.
"""

from __future__ import annotations

import difflib
import os
import platform
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from protocol.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNKNOWN = "unknown"

_MACHINES = {
    ("Linux", "x86_64"): "x86-64",
    ("Darwin", "x86_64"): "x86-64",
    ("Windows", "AMD64"): "x86-64",
    ("Darwin", "arm64"): "apple-silicon",
}

Positive = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[int, msgspec.Meta(ge=1)]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of device."""

    name: str
    description: str
    cores: Amount  # Logical CPUs; all of them busy draw max_w.
    threads: Amount  # Recommended for training.
    memory_mb: Amount | None = None  # RAM of the smallest variant; None: differs by machine.
    budget_mb: Amount | None = None  # What training should need at most on that variant.
    idle_w: Annotated[float, msgspec.Meta(ge=0)]  # Booted, headless, waiting.
    max_w: Positive  # All cores busy, GPU idle.
    boundary: str  # Where the watts are counted, and what lies inside.
    source: str  # Where the watts come from.
    uncertainty: Annotated[float, msgspec.Meta(gt=0, le=1)]  # Relative, k = 2, of max_w - idle_w.
    models: tuple[str, ...] = ()  # Beginnings of /proc/device-tree/model.
    compatible: tuple[str, ...] = ()  # Whole entries of /proc/device-tree/compatible.
    not_models: tuple[str, ...] = ()  # Words in the model text that rule this board out.

    @property
    def core_w(self) -> float:
        """Watts that one busy core adds to an idle board, averaged over all cores."""
        return (self.max_w - self.idle_w) / self.cores


def names() -> tuple[str, ...]:
    """Return the names of all profiles, sorted."""
    files = resources.files("device_profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load(name: str) -> Profile:
    """Return the named profile.

    Raises:
        ConfigError: there is none of that name, or its file is damaged.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"no device profile {name!r}; {hint}")
    text = resources.files("device_profiles").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    try:
        profile = msgspec.convert(tomllib.loads(text), Profile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"device profile {name}.toml is damaged: {error}") from error
    if profile.name != name or profile.max_w <= profile.idle_w:
        raise ConfigError(
            f"device profile {name}.toml is damaged: its name differs, or max_w is not above idle_w"
        )
    return profile


def detect(
    root: Path = Path("/"), system: str | None = None, machine: str | None = None, num_cpus: int | None = None
) -> Profile:
    """Return the profile of this machine, "unknown" where no profile fits.

    Its threads are at most the CPUs this process may run on: more threads than CPUs wait for each
    other. `root` is where /proc lies; `system` and `machine` are those of the platform module.
    """
    profile = _matching(root, system or platform.system(), machine or platform.machine())
    return msgspec.structs.replace(profile, threads=min(profile.threads, num_cpus or _num_cpus()))


def _matching(root: Path, system: str, machine: str) -> Profile:
    tree = root / "proc/device-tree"
    # Both files are NUL-terminated; `compatible` is a list whose entries contain commas.
    model = "".join(_strings(tree / "model"))
    entries = _strings(tree / "compatible")
    profiles = [load(name) for name in names()]
    for profile in profiles:
        if profile.models and model.startswith(profile.models):
            return profile
    for profile in profiles:
        ruled_out = any(word in model for word in profile.not_models)
        if not ruled_out and not set(profile.compatible).isdisjoint(entries):
            return profile
    # A board with a device tree that no profile fits is not a PC, whatever its processor.
    if model or entries:
        return load(UNKNOWN)
    return load(_MACHINES.get((system, machine), UNKNOWN))


def _num_cpus() -> int:
    """CPUs this process may run on; systems other than Linux say only how many there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _strings(path: Path) -> list[str]:
    try:
        return [part.decode("utf-8", "replace") for part in path.read_bytes().split(b"\0") if part]
    except OSError:
        return []
