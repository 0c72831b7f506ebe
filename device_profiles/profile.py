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
from typing import Annotated, Literal

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
Scope = Literal["wall", "board_input", "module_input", "rails_sum", "soc_package", "cpu", "model"]


class PowerSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to learn what the board draws, as `edge_client.energy` reads it."""

    sensor: str  # ina3221, hwmon, pmic, rapl, battery, load-model, model
    # What is added up; "A|B": whichever of these names is there. Never a rail and its parent.
    rails: tuple[str, ...] = ()
    scope: Scope | None = None  # None: as the sensor says.
    covers: str = ""
    leaves_out: str = ""
    tau_s: float | None = None  # Of the sensor's low pass, where its own files do not say.


class Caches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes; None where nobody has told."""

    l1i_kb: Amount | None = None  # Each core's.
    l1d_kb: Amount | None = None
    l2_kb: Amount | None = None
    l2_is_shared: bool | None = None
    l3_kb: Amount | None = None  # Shared.


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of device. What nobody has published is None, or empty."""

    name: str
    description: str
    soc: str = ""
    cpu: str = ""  # Kinds of core.
    gpu: str = ""  # Not used for training.
    cores: Amount  # Logical CPUs; all of them busy draw max_w.
    clock_mhz: Positive | None = None  # Highest by default; the board itself knows better.
    clock_min_mhz: Positive | None = None
    features: tuple[str, ...] = ()  # Of /proc/cpuinfo, those that matter: asimd, asimdhp, asimddp.
    caches: Caches = Caches()
    threads: Amount  # Recommended for training.
    memory_mb: Amount | None = None  # RAM of the smallest variant; None: differs by machine.
    budget_mb: Amount | None = None  # What training should need at most on that variant.
    idle_w: Annotated[float, msgspec.Meta(ge=0)] | None = None  # Booted, headless, waiting.
    max_w: Positive | None = None  # All cores busy, GPU idle.
    boundary: str  # Where the watts are counted, and what lies inside.
    source: str  # Where the watts come from.
    uncertainty: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None  # Relative, k = 2, of the watts.
    clock_exponent: Positive = 1.0  # Power over idle goes with clock^k: 1 at a fixed voltage.
    power: tuple[PowerSource, ...] = ()  # In order of preference.
    thermal: tuple[str, ...] = ()  # Types of thermal zones.
    throttle: tuple[str, ...] = ()  # Where throttling is told.
    throttle_c: float | None = None  # It slows down from here.
    python: str = ""  # What fits on its system, and from where.
    onnxruntime: str = ""
    models: tuple[str, ...] = ()  # Beginnings of /proc/device-tree/model.
    modules: tuple[str, ...] = ()  # Beginnings of NVIDIA's module numbers in `compatible`.
    compatible: tuple[str, ...] = ()  # Whole entries of /proc/device-tree/compatible.
    not_models: tuple[str, ...] = ()  # Words in the model text that rule this board out.

    @property
    def core_w(self) -> float | None:
        """Watts that one busy core adds to an idle board, averaged over all cores; None: unknown."""
        return None if self.max_w is None or self.idle_w is None else (self.max_w - self.idle_w) / self.cores


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
    watts = [profile.idle_w, profile.max_w, profile.uncertainty]
    is_ordered = profile.idle_w is None or profile.max_w is None or profile.max_w > profile.idle_w
    if profile.name != name or not is_ordered or watts.count(None) not in (0, 3):
        raise ConfigError(
            f"device profile {name}.toml is damaged: its name differs, max_w is not above idle_w, or only some "
            "of idle_w, max_w and uncertainty are given"
        )
    return profile


def detect(
    root: Path = Path("/"), system: str | None = None, machine: str | None = None, num_cpus: int | None = None
) -> Profile:
    """Return the profile of this machine, "unknown" where no profile fits.

    Its threads are at most the CPUs this process may run on: more threads than CPUs wait for each
    other. `root` is where /proc and /sys lie; `system` and `machine` are those of the platform module.
    A tree of another machine tells neither: with a DMI table it is taken for a PC.
    """
    if root != Path("/") and system is None and machine is None:
        system, machine = "Linux", "x86_64" if (root / "sys/class/dmi/id").is_dir() else "unknown"
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
        if any(word in model for word in profile.not_models):
            continue
        # "nvidia,p3768-0000+p3767-0005-super": a carrier, a module, a variant.
        parts = [part for entry in entries for part in entry.replace(",", "+").split("+")]
        is_module = any(part.startswith(profile.modules) for part in parts if profile.modules)
        if is_module or not set(profile.compatible).isdisjoint(entries):
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


def machine_name(root: Path = Path("/")) -> str:
    """Return what the machine calls itself: the device tree's model, or DMI's maker and product; "" if neither."""
    model = "".join(_strings(root / "proc/device-tree/model"))
    if model:
        return model
    names = [
        " ".join(_strings(root / "sys/class/dmi/id" / name)).strip()
        for name in ("sys_vendor", "product_name")
    ]
    return " ".join(name for name in names if name)
