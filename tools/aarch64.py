"""An aarch64 board without a board: the op library cross-compiled, and a Python to run it under qemu.

    python -m tools.aarch64 build/aarch64      make it, or what is missing of it; prints the command prefix

The folder gets `root`, the unpacked packages of a Debian root file system (no second stage: nothing
there is ever executed but Python), `site`, the aarch64 wheels that a board would install, and
`kernels`, the cross-compiled library. Needs the packages that tools/install-test-tools installs.
Emulated times say nothing about speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static", "debootstrap", "dpkg-deb", "tar", "cmake")
RELEASE, PYTHON = "bookworm", "3.11"
PACKAGES = "python3,libgomp1,libstdc++6"
# What a device installs, and what the tests that run there need beside it. Not the newest
# onnxruntime: 1.31.1 crashes while it is imported under bookworm's qemu 7.2, on any -cpu.
WHEELS = (
    "onnxruntime==1.24.1",
    "numpy",
    "msgspec",
    "zstandard",
    "psutil",
    "paho-mqtt",
    "cryptography",
    "onnx",
    "pytest",
    "pytest-timeout",  # The project's settings of pytest have its option.
    "hypothesis",
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17")


class Missing(RuntimeError):
    """A tool is not installed; the text says how to install it."""


@dataclass(frozen=True)
class Board:
    """Where its parts lie, and how to run its Python."""

    root: Path
    site: Path
    library: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line of the board's Python under qemu."""
        python = self.root / "usr" / "bin" / f"python{PYTHON}"
        return ["qemu-aarch64-static", "-L", str(self.root), str(python), *arguments]

    def environment(self, *paths: Path) -> dict[str, str]:
        """Variables for it: the wheels, then `paths`, and the library of this architecture."""
        entries = [str(path) for path in (self.site, *paths)]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entries),
            "SPARSEFLEET_LIBRARY": str(self.library),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def board(folder: Path, source: Path) -> Board:
    """Return the board in a folder, making what is not there yet. `source` is the repository.

    Raises:
        Missing: a tool of the host is not installed.
        subprocess.CalledProcessError: a download or the compiler failed; its output is on stderr.
    """
    missing = [tool for tool in TOOLS if _which(tool) is None]
    if missing:
        raise Missing(f"{', '.join(missing)} not found; run tools/install-test-tools")
    folder.mkdir(parents=True, exist_ok=True)
    root, site = folder / "root", folder / "site"
    _once(root, _root, f"{RELEASE} {PACKAGES}")
    _once(site, _site, " ".join(WHEELS))
    return Board(root, site, _library(folder / "kernels", source))


def _which(tool: str) -> str | None:
    """Where a program is: beside this Python, as pip installs cmake, or on the path."""
    return shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def _once(folder: Path, make: Callable[[Path], None], content: str) -> None:
    """Make a folder unless an earlier run finished it with the same content, as its mark says."""
    mark = folder.with_suffix(".done")
    if mark.is_file() and mark.read_text() == content:
        return
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    mark.write_text(content)


def _run(*command: str | Path, given: bytes | None = None) -> bytes:
    """Run a program of the host; return its output."""
    program, *arguments = (str(part) for part in command)
    done = subprocess.run(
        [_which(program) or program, *arguments], check=True, input=given, stdout=subprocess.PIPE
    )
    return done.stdout


def _root(root: Path) -> None:
    """Fetch the packages and unpack them side by side."""
    options = ("--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}")
    _run("debootstrap", *options, RELEASE, root)
    for package in sorted((root / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        _run("tar", "x", "-C", root, given=_run("dpkg-deb", "--fsys-tarfile", package))


def _site(site: Path) -> None:
    """Download the wheels of the other architecture; wheels are zip files."""
    wheels = site.with_name("wheels")
    platforms = [flag for name in PLATFORMS for flag in ("--platform", f"{name}_aarch64")]
    python = ("--python-version", PYTHON.replace(".", ""), "--implementation", "cp")
    options = ("--quiet", "--only-binary=:all:", *platforms, *python, "--dest", str(wheels))
    _run(sys.executable, "-m", "pip", "download", *options, *WHEELS)
    site.mkdir()
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def _library(build: Path, source: Path) -> Path:
    """Cross-compile the op library, with warnings as errors; cmake finds out what has changed."""
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    compiler = ("-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DSPARSEFLEET_WERROR=ON")
    _run("cmake", "-S", source, "-B", build, *target, *compiler, "-DSKBUILD_STATE=aarch64")
    _run("cmake", "--build", build, "--parallel")
    return build / "libsparsefleet_ops.so"


def main() -> int:
    """Make the board and print how to run Python on it."""
    made = board(Path(sys.argv[1] if len(sys.argv) > 1 else "build/aarch64").resolve(), Path.cwd())
    environment = made.environment()
    shown = [f"{name}={environment[name]}" for name in ("PYTHONPATH", "SPARSEFLEET_LIBRARY")]
    print(" ".join([*shown, *made.command()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
