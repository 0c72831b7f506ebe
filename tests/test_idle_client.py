"""What a client costs a board while it waits for a task."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from protocol.config import dumps
from tests.conftest import USERS

ROOT = Path(__file__).resolve().parent.parent
RESIDENT_BYTES = 60e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_waiting_client_is_small_and_has_not_loaded_the_runtime(tmp_path, embedded_broker):
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 1, 8, 8), np.float32), y=np.zeros(5, np.int64))
    broker = {"url": embedded_broker.url, "fleet": "lab", "password": USERS["device"]}
    config = {"client_id": "pi", "data": "data.npz", "broker": broker, "meter": {"idle_s": 0.2}}
    (tmp_path / "client.toml").write_text(dumps(config))
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tools.cli", "-v", "client", "--config", str(tmp_path / "client.toml")]
    with log.open("wb") as file:
        client = subprocess.Popen(command, cwd=ROOT, stderr=file)
    try:
        until_s = time.monotonic() + 30
        while "joined client=pi" not in log.read_text():
            assert time.monotonic() < until_s, log.read_text()
            assert client.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(0.5)
        status = Path(f"/proc/{client.pid}/status").read_text()
        resident = 1024 * int(status.partition("VmRSS:")[2].split()[0])
        maps = Path(f"/proc/{client.pid}/maps").read_text()
    finally:
        client.kill()
        client.wait()
    assert "libsparsefleet_ops" in maps
    assert "onnxruntime" not in maps
    assert 20e6 < resident < RESIDENT_BYTES
