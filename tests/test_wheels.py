"""The wheels for boards: whether their tags keep what they promise, and what they take on a card."""

from __future__ import annotations

import platform
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools import wheelhouse, wheels
from tools.device import environment

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.aarch64]

LIBRARY = "edge_client/kernels/libsparsefleet_ops.so"
# What a system that satisfies the tag has at least: PEP 600, and the policy of manylinux_2_27.
NEWEST = {"GLIBC": (2, 27), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0)}
INSTALL_BYTES = 150e6


@pytest.fixture(scope="module")
def aarch64_wheel(tmp_path_factory) -> Path:
    return wheels.build(ROOT, tmp_path_factory.mktemp("dist"), "aarch64")


@pytest.fixture(scope="module")
def own_wheel(tmp_path_factory) -> Path:
    return wheels.build(ROOT, tmp_path_factory.mktemp("dist"), platform.machine())


@pytest.mark.parametrize("which", ["aarch64_wheel", "own_wheel"])
def test_a_tag_keeps_what_it_promises(request, which, tmp_path):
    wheel: Path = request.getfixturevalue(which)
    machine = wheel.stem.rpartition("_2_27_")[2]
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract(LIBRARY, tmp_path))
        (info,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: py3-none-manylinux_2_27_{machine}\n" in archive.read(info).decode()
        assert not [name for name in archive.namelist() if name.endswith((".cpp", ".h", ".inc", ".npz"))]

    def readelf(option: str) -> str:
        return subprocess.run(["readelf", option, library], capture_output=True, text=True, check=True).stdout

    assert {"aarch64": "AArch64", "x86_64": "X86-64"}[machine] in readelf("-h")
    needed = set(re.findall(r"NEEDED.*\[(\S+?)\]", readelf("-d")))
    assert needed <= {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1"} | (
        {"ld-linux-x86-64.so.2"} if machine == "x86_64" else set()
    )
    asked = re.findall(r"Name: ([A-Z]+)_([0-9.]+)", readelf("-V"))
    assert {name for name, _ in asked} >= {"GLIBC", "GLIBCXX"}
    for name, version in asked:
        assert tuple(int(part) for part in version.split(".")) <= NEWEST[name], f"{name}_{version}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_board_installs_from_wheels_alone_and_little(aarch64_wheel, python, tmp_path):
    """JetPack 6 with 3.10 to Raspberry Pi OS trixie with 3.13. A package without a wheel would fail here."""
    glibc = {"3.10": 35, "3.11": 36, "3.12": 39, "3.13": 41}[python]
    found = wheelhouse.download(str(aarch64_wheel), tmp_path, wheelhouse.Target(python, glibc=glibc))
    names = {path.name.split("-")[0].lower() for path in found}
    assert names >= {"sparsefleet", "onnxruntime", "numpy", "pip"}
    assert not names & {"torch", "onnx", "amqtt", "rich", "sympy"}
    for path in found:
        if not path.name.startswith("pip-"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path / "site")
    environment.trim(tmp_path / "site")
    size = sum(path.stat().st_size for path in (tmp_path / "site").rglob("*"))
    assert 100e6 < size < INSTALL_BYTES
