"""The kernel tests once more, on kernels that stop at a wrong memory access or undefined behaviour."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def library() -> Path:
    """Compiled anew only where something changed."""
    build = ROOT / "build" / "sanitize"
    cmake = shutil.which(
        "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    assert cmake is not None
    for command in (
        (cmake, "-S", ROOT, "-B", build, "-DSPARSEFLEET_SANITIZE=ON", "-DSKBUILD_STATE=sanitize"),
        (cmake, "--build", build, "--parallel"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "libsparsefleet_ops.so"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sanitizers are preloaded, as on Linux")
@pytest.mark.parametrize("isa", ["", "baseline"])
def test_the_kernels_touch_only_what_is_theirs(library, isa):
    runtimes = [run("g++", f"-print-file-name=lib{name}.so").stdout.strip() for name in ("asan", "ubsan")]
    done = run(
        sys.executable,
        *(
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "tests/edge_client/kernels",
            "-m",
            "not slow",
        ),
        *("-k", "not instruction_set"),
        LD_PRELOAD=" ".join(runtimes),
        ASAN_OPTIONS="detect_leaks=0",  # Python's own.
        UBSAN_OPTIONS="print_stacktrace=1",
        SPARSEFLEET_LIBRARY=str(library),
        SPARSEFLEET_TEST_WITHOUT_TORCH="1",
        SPARSEFLEET_ISA=isa,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-1000:]
    assert int(passed[1]) > 300
