"""One environment: Python, the wheels, and whether what they make works.

Made from wheels alone, by pip's own wheel: Debian ships `venv`, but neither pip nor ensurepip with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import UserError

OLDEST_PYTHON = (3, 10)
MACHINES = ("aarch64", "x86_64")

# Of the packages, what a client never imports, 22 MB: their tests, a second build of zstandard for PyPy, and
# the scripts with which onnxruntime converts models.
UNUSED = (
    "**/tests",
    "zstandard/_cffi*",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
)

# In a process of the new environment: what a client imports, the op library in the runtime, and bytes of
# compiled Python for all of it, which the service's user may not write.
SELF_TEST = """
import tools.cli, tools.client, importlib.metadata
from edge_client.kernels import library_path
from edge_client.ort import installed_package, kernel_isa, session_options
library = library_path()
session_options(library, 1)
print(importlib.metadata.version("sparsefleet"), kernel_isa(library), installed_package(), sep="; ")
"""


class InstallFailed(UserError):
    """An environment could not be made, or does not work."""


def check_machine(python: tuple[int, int] = sys.version_info[:2], machine: str = os.uname().machine) -> None:
    """Refuse what no wheels exist for.

    Raises:
        InstallFailed: too old a Python, or a 32-bit system.
    """
    if machine not in MACHINES or sys.maxsize < 2**32:
        raise InstallFailed(
            f"this system is {machine}{'' if sys.maxsize > 2**32 else ' with a 32-bit Python'}: onnxruntime and numpy "
            "have wheels for 64-bit systems only; flash a 64-bit image"
        )
    if python < OLDEST_PYTHON:
        raise InstallFailed(
            f"Python {python[0]}.{python[1]} is too old, 3.10 is needed; on JetPack 4 and 5 install one beside it: "
            "curl -LsSf https://astral.sh/uv/install.sh | sh; uv python install 3.11"
        )


def make(folder: Path, wheels: Sequence[Path], base: Path | None = None) -> None:
    """Make the environment anew from these wheels, of which one is pip's; on top of a copy of `base` if given.

    Raises:
        InstallFailed: pip's is missing, the disk is full or read-only, or pip refuses; its words are in the text.
    """
    pip = [path for path in wheels if path.name.startswith("pip-")]
    ours = [path for path in wheels if path.name.startswith("sparsefleet-")]
    if not pip or len(ours) != 1:
        raise InstallFailed(
            f"the wheelhouse needs pip's wheel and one of sparsefleet; it has {len(pip)} and {len(ours)}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if base is None:
            venv.EnvBuilder(symlinks=True).create(folder)
        else:  # Nothing in it names its own path but scripts, which nobody calls.
            shutil.copytree(base, folder, symlinks=True)
    except (OSError, shutil.Error) as error:
        raise InstallFailed(f"{folder} cannot be made: {error}; an environment takes 150 MB") from error
    command = [folder / "bin" / "python", pip[0] / "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += [
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
        "--force-reinstall",
        "--root-user-action=ignore",
    ]
    command += [path for path in wheels if path not in pip]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    for packages in folder.glob("lib/python*/site-packages"):
        trim(packages)
    if done.returncode != 0:
        raise InstallFailed(f"pip cannot install into {folder}: {_last_line(done.stderr)}")


def trim(packages: Path) -> None:
    """Remove from a site-packages folder what a client never imports."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def self_test(folder: Path) -> str:
    """Return what the environment has: versions and kernels.

    Raises:
        InstallFailed: something does not import or load; the last line of the traceback is in the text.
    """
    command = [str(folder / "bin" / "python"), "-I", "-c", SELF_TEST]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallFailed(f"what was installed in {folder} does not work: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1]
