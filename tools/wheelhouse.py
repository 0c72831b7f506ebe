"""A wheelhouse: the wheels that a board installs without a network, and pip's own to install them with.

    python3 wheels/pip-*.whl/pip install --no-index --no-deps wheels/*.whl

The dependencies are resolved here, on the machine with the network; the board takes what lies there.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UserError

# onnxruntime up to 1.24 names sympy and coloredlogs as requirements, 75 MB on a board. Its optimisation scripts
# import them, the runtime never does: tests/test_first_boot.py trains without them.
NOT_NEEDED = ("sympy", "mpmath", "coloredlogs", "humanfriendly")
OLDEST_GLIBC = 17  # manylinux2014.


class NoWheels(UserError):
    """A package has no wheel for this Python and system, or the index cannot be reached."""


@dataclass(frozen=True)
class Target:
    """What the wheels must fit."""

    python: str  # "3.11"
    machine: str = "aarch64"
    glibc: int = 36  # The minor version; the major one is 2.

    @classmethod
    def here(cls) -> Target:
        """This interpreter on this machine."""
        library, version = platform.libc_ver()
        if library != "glibc":
            raise NoWheels(f"wheels are for glibc, this system has {library or 'another C library'}")
        minor = int(version.split(".")[1])
        return cls(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine(), minor)

    def options(self) -> list[str]:
        """For pip: every tag that such a system takes."""
        names = [f"manylinux_2_{minor}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        platforms = [
            part for name in (*names, "manylinux2014") for part in ("--platform", f"{name}_{self.machine}")
        ]
        return [*platforms, "--python-version", self.python, "--implementation", "cp", "--only-binary=:all:"]


def download(wheel: str, out: Path, target: Target, pins: Sequence[str] = ()) -> list[Path]:
    """Fill a folder with a wheel of ours, those of the extra `device`, and pip's; return them.

    `pins` are other versions than the newest, such as "onnxruntime==1.24.1".

    Raises:
        NoWheels: one is missing; pip's own words are in the text.
    """
    _pip(["-m", "pip"], out, *target.options(), f"{wheel}[device]", *pins, "pip")
    for path in out.glob("*.whl"):
        if path.name.split("-")[0].lower() in NOT_NEEDED:
            path.unlink()
    return sorted(out.glob("*.whl"))


def one(requirement: str, out: Path, pip: Sequence[Path]) -> list[Path]:
    """Download the wheel of one requirement for this machine, with pip's wheel.

    Raises:
        NoWheels: there is none, or the index cannot be reached.
    """
    program = [str(path / "pip") for path in pip[-1:]] or ["-m", "pip"]
    _pip(program, out, "--no-deps", "--only-binary=:all:", requirement)
    return sorted(out.glob("*.whl"))


def _pip(program: list[str], out: Path, *arguments: str) -> None:
    command = [sys.executable, *program, "download", "--quiet", "--dest", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:]
        words = "".join(reason) or done.stderr[-500:]
        raise NoWheels(f"wheels cannot be downloaded: {words} (pip download {' '.join(arguments)})")
