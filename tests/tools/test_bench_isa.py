"""Both sides of a comparison use the instruction set asked for; what torch has says itself what it uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from tests.edge_client.kernels.test_kernels_library import IS_X86, cpu_flags
from tools.bench import isa, rivals

SIDES = """
import sys
from edge_client.kernels import library_path
from edge_client.ort import kernel_isa
from tools.bench import isa
isa.hold(sys.argv[1])
import torch
print("ours:", kernel_isa(library_path()))
print("torch:", torch.backends.cpu.get_cpu_capability())
x = torch.ones(2, 16, 32, 32)
x[0, 0] @ x[0, 1]
torch.nn.Conv2d(16, 16, 3)(x)
"""


@pytest.fixture
def restored(monkeypatch):
    for name in (isa.OURS, *isa.TORCH):
        monkeypatch.setenv(name, "")  # What hold() sets is gone afterwards.


@pytest.mark.skipif(not IS_X86 or not {"avx2", "fma"} <= cpu_flags(), reason="this machine has no AVX2")
@pytest.mark.parametrize(
    ("name", "capability", "convolutions", "wider_products"),
    [
        ("avx2", "AVX2", "Intel AVX2", "Vector Extensions 512"),
        ("baseline", "DEFAULT", "Intel SSE4.1", "Vector Extensions"),
    ],
    ids=["avx2", "baseline"],
)
def test_our_kernels_and_torch_are_held_to_the_same(name, capability, convolutions, wider_products):
    pytest.importorskip("torch")
    names = {isa.OURS, *isa.TORCH}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, "-c", SIDES, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = done.stdout
    assert f"ours: {name}\n" in said
    assert f"torch: {capability}\n" in said
    (products,) = [line for line in said.splitlines() if line.startswith("MKL_VERBOSE oneMKL")]
    # There MKL takes kernels of its own, whatever it is told, and names none.
    is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    assert is_amd or wider_products not in products
    assert ("MKL cannot be held" in done.stderr) == (is_amd and name == "baseline")
    assert f",cpu,isa:{convolutions}\n" in said


def test_what_this_machine_lacks_is_an_error(restored, monkeypatch):
    monkeypatch.setattr(isa, "kernel_isa", lambda library: "")  # As the library answers then.
    with pytest.raises(ConfigError, match=r"--isa avx512: this machine does not have it"):
        isa.hold("avx512")


def test_onnxruntime_is_left_out_since_nothing_holds_it(monkeypatch):
    monkeypatch.setenv(isa.OURS, "baseline")
    with pytest.raises(rivals.Missing, match="cannot be"):
        rivals.ort_training_step(None)


def test_the_widest_instruction_set_holds_nothing_back(monkeypatch):
    monkeypatch.delenv(isa.OURS, raising=False)
    assert not isa.is_held()
    for name, is_held in {"": False, "avx512": False, "neon": False, "avx2": True, "baseline": True}.items():
        monkeypatch.setenv(isa.OURS, name)
        assert isa.is_held() == is_held
