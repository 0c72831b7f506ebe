"""sparsefleet doctor: what it finds, what it advises, and its exit codes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from protocol.config import dumps
from tests.conftest import USERS
from tools import doctor
from tools.cli import main


def found(capsys, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *arguments])
    checks = json.loads(capsys.readouterr().out)
    for check in checks:
        assert set(check) == {"check", "status", "found", "cure"}
        assert check["cure"] or check["status"] in ("ok", "skipped", "fail")
    return code, {check["check"]: check for check in checks}


def a_client(tmp_path: Path, **changes: object) -> str:
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 1, 8, 8), np.float32), y=np.zeros(5, np.int64))
    config = {"client_id": "pi", "data": "data.npz", "broker": {"url": "mqtt://127.0.0.1:1"}, **changes}
    (tmp_path / "client.toml").write_text(dumps(config))
    return str(tmp_path / "client.toml")


def test_a_machine_alone(capsys):
    code, checks = found(capsys)
    names = {"python", "runtime", "kernels", "clock", "memory", "board", "energy", "conditions", "disk"}
    assert set(checks) == names
    assert code == max(doctor.EXIT[check["status"]] for check in checks.values())
    assert code < 2


def test_a_client_whose_broker_is_away_fails_and_says_where(tmp_path, capsys):
    code, checks = found(capsys, "--client", a_client(tmp_path))
    assert code == 2
    assert checks["client"]["found"].startswith("5 in ")
    (failed,) = [check for check in checks.values() if check["status"] == "fail"]
    assert "127.0.0.1, port 1" in failed["found"]


def test_a_client_without_examples_fails_and_the_other_checks_go_on(tmp_path, capsys):
    code, checks = found(capsys, "--client", a_client(tmp_path, data="nowhere.npz"))
    assert code == 2
    assert "nowhere.npz" in checks["client"]["found"]
    assert checks["disk"]["status"] in ("ok", "warn")


def test_a_broker_that_accepts_is_fine(tmp_path, capsys, embedded_broker):
    broker = {"url": embedded_broker.url, "username": "device", "password": USERS["device"]}
    _, checks = found(capsys, "--client", a_client(tmp_path, broker=broker))
    assert checks["broker"]["status"] == "ok", checks


def test_a_clock_in_the_past_a_full_disk_and_little_memory_are_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(doctor, "available_bytes", lambda: 50_000_000)
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 60)
    code, checks = found(capsys)
    assert code == 2
    assert (checks["clock"]["status"], checks["memory"]["status"], checks["disk"]["status"]) == (
        "fail",
        "warn",
        "warn",
    )
    assert "timedatectl" in checks["clock"]["cure"]


def test_a_board_nobody_knows_is_a_warning(tmp_path, capsys):
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"Some Board\0")
    code, checks = found(capsys, "--root", str(tmp_path))
    assert checks["board"]["status"] == "warn"
    assert code == 1


@pytest.mark.parametrize("text", ["", "rounds = 'many'"])
def test_a_damaged_experiment_fails(tmp_path, capsys, text):
    (tmp_path / "experiment.toml").write_text(text)
    code, checks = found(capsys, "--experiment", str(tmp_path / "experiment.toml"))
    assert code == 2
    assert any(check["status"] == "fail" for check in checks.values())
