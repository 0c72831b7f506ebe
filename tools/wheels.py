"""Wheels for boards and for this machine: one for each architecture.

    python -m tools.wheels dist

The op library is loaded by ONNX Runtime and knows nothing of Python's ABI, so one wheel fits CPython
3.10 to 3.13 and later. Its tag says what the library asks of the system: glibc 2.27 and newer, from JetPack 4
and Debian 10 on (edge_client/kernels/oldest_glibc.h; tests/test_wheels.py reads it back).
aarch64 is cross-compiled with what tools/install-test-tools installs; nothing is compiled on a board.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

GLIBC = "manylinux_2_27"
CROSS_COMPILER = "aarch64-linux-gnu-g++"


class Missing(RuntimeError):
    """A compiler is not installed; the text says how to install it."""


def build(source: Path, out: Path, machine: str) -> Path:
    """Build the wheel for `machine` ("aarch64" or "x86_64") from the repository into a folder; return its path.

    Raises:
        Missing: another machine's compiler is not installed.
        subprocess.CalledProcessError: the build failed; its output is on stderr.
    """
    settings = {"wheel.tags": f"py3-none-{GLIBC}_{machine}"}
    if machine != platform.machine():
        if machine != "aarch64" or shutil.which(CROSS_COMPILER) is None:
            raise Missing(f"no compiler for {machine}: {CROSS_COMPILER} comes with tools/install-test-tools")
        settings |= {
            "cmake.define.CMAKE_SYSTEM_NAME": "Linux",
            "cmake.define.CMAKE_SYSTEM_PROCESSOR": machine,
            "cmake.define.CMAKE_CXX_COMPILER": CROSS_COMPILER,
        }
    out.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    subprocess.run([*command, *(f"-C{key}={value}" for key, value in settings.items())], check=True)
    (made,) = (path for path in out.iterdir() if before.get(path) != path.stat().st_mtime_ns)
    return made


def main() -> int:
    """Build both; print their paths."""
    if platform.system() != "Linux":
        print("wheels for boards are built on Linux", file=sys.stderr)
        return 2
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    for machine in dict.fromkeys(("aarch64", platform.machine())):
        print(build(Path.cwd(), out, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
