"""The kernels and a whole client on aarch64, under qemu, with the runtime that a board installs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from tools import aarch64
from tools.split import split

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.aarch64]

# Start Python from within Python, which needs the emulator to be registered with the kernel.
STARTS_A_PROCESS = "not_available_is_an_error_at_load or large_tensors_are_on_large_pages or size_of_l1"


@pytest.fixture(scope="module")
def board() -> aarch64.Board:
    """Kept between runs, in the folder of what is built. A missing tool is a failure, not a skip."""
    return aarch64.board(ROOT / "build" / "aarch64", ROOT)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The packages without the library of this machine, which must not be the one that runs."""
    folder = tmp_path / "sources"
    for package in ("protocol", "edge_client", "device_profiles", "tools", "tests"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.dylib")
        )
    return folder


def test_the_kernels_agree_with_their_references(board, sources):
    command = board.command(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/edge_client/kernels", "-k", f"not ({STARTS_A_PROCESS})"
    )  # fmt: skip
    # Without the project's configuration pytest would take another root.
    shutil.copy(ROOT / "pyproject.toml", sources)
    environment = {**board.environment(sources), "SPARSEFLEET_TEST_WITHOUT_TORCH": "1"}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-1000:]
    assert int(passed[1]) > 300


def test_the_loops_of_sparse_tiles_stay_in_registers(board):
    """What an emulator cannot time: loads limit these loops, and a sum or an address on the stack is more of them."""
    (kernels,) = board.library.parent.rglob("unit.cpp.o")
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", kernels],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    num_loops = 0
    for function in listing.split("\n\n"):
        tile = re.search(r"<\w*?\d(spmm|sddmm)_tileILi(\d)ELi(\d)E", function)
        if tile is None or not (loops := _loops_of_multiply_adds(function.splitlines()[1:])):
            continue
        share, loop = min(loops)
        num_loops += 1
        assert not [line for line in loop if "[sp" in line], (tile[0], loop)
        largest, most = {"spmm": (6, 2.0), "sddmm": (4, 2.5)}[tile[1]]
        if int(tile[2]) * int(tile[3]) == largest:
            assert share <= most, (tile[0], loop)
    assert num_loops > 40


def _loops_of_multiply_adds(lines: list[str]) -> list[tuple[float, list[str]]]:
    """Backward branches over sixteen or more: instructions for each, and the instructions."""
    place = {line.split(":")[0].strip(): i for i, line in enumerate(lines)}
    branches = (
        (place.get(found[1], i), i)
        for i, line in enumerate(lines)
        if (found := re.search(r"\t(?:b\.\w+|cbn?z|tbn?z)\t.*?([0-9a-f]+) <", line))
    )
    bodies = [lines[first : last + 1] for first, last in branches if first < last]
    counts = [sum("fmla" in line for line in body) for body in bodies]
    return [(len(body) / count, body) for body, count in zip(bodies, counts, strict=True) if count >= 16]


def test_a_client_trains_rounds_beside_one_of_this_machine(board, sources, federate, tmp_path):
    pytest.importorskip("sklearn")
    home = tmp_path / "home"
    export_model("cnn", (1, 8, 8), 10, home / "artifact", library_path())
    split(source="digits", out=home / "data", clients=2, how="iid", alpha=1.0, seed=0)
    one = federate(home, 2)
    one.write({"name": "fedpai", "density": 0.1}, rounds=2, deadline_s=240, join_timeout_s=120)
    one.start_coordinator("--out", str(one.out))
    one.start_client(0)
    one.client_command, one.client_folder = board.command("-m", "tools.cli"), sources
    one.client_environment = board.environment(sources)
    one.start_client(1)
    summary = one.finish(timeout_s=400)
    assert [row["updates"] for row in read_csv(Path(summary["report"]) / "rounds.csv")] == ["2"] * 3
    assert "neon" in (one.folder / "client-001.log").read_text() + (one.out / "events.jsonl").read_text()
