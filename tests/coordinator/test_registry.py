from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys

import pytest

from coordinator.registry import ACCEPTED, KEPT_SESSIONS, REVOKED, Device, Registry, Session
from protocol.errors import ConfigError
from protocol.signed import Window

A, B = Device("a", b"\1" * 32), Device("b", b"\2" * 32, REVOKED, "lost", "code")


def test_what_was_written_is_there_after_a_restart_and_only_its_owner_may_read_it(tmp_path):
    path = tmp_path / "home" / "lab.db"
    registry = Registry(path)
    registry.put(A)
    registry.put(B)
    session = Session(3, b"boot", 2, True, 7, Window(2**62, 2**32 - 1))
    registry.keep("a", session)
    registry.close()
    again = Registry(path)
    assert again.devices() == [A, B]
    assert again.device("b") == again.holder(b"\2" * 32) == B
    assert again.device("c") is None
    assert again.holder(b"\3" * 32) is None
    assert again.sessions("a") == [session]
    assert again.sessions("b") == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_lost_when_the_process_is_killed(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from coordinator.registry import *\n"
        f"r = Registry(Path({str(tmp_path / 'lab.db')!r})); r.put(Device('a', bytes(32))); r.keep('a', Session(9))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    registry = Registry(tmp_path / "lab.db")
    assert [device.client_id for device in registry.devices()] == ["a"]
    assert registry.sessions("a") == [Session(9)]


def test_two_devices_cannot_have_one_key(tmp_path):
    registry = Registry()
    registry.put(A)
    registry.put(Device("copy", A.public_key))
    assert [device.client_id for device in registry.devices()] == ["copy"]


def test_a_forgotten_device_is_new_when_it_comes_back():
    registry = Registry()
    registry.put(A)
    registry.put(B)
    registry.keep("a", Session(9))
    registry.forget("a")
    assert registry.devices() == [B]
    assert registry.sessions("a") == []


def test_only_the_last_sessions_are_kept():
    registry = Registry()
    for number in range(100):
        registry.keep("a", Session(number))
    assert [one.number for one in registry.sessions("a")] == list(range(99, 99 - KEPT_SESSIONS, -1))


def test_a_code_is_used_up_even_if_two_come_at_once(tmp_path):
    """Both have read that it can still be used."""
    one, other = Registry(tmp_path / "lab.db"), Registry(tmp_path / "lab.db")
    one.add_code("code", 1, ACCEPTED)
    assert one.codes() == other.codes() == {"code": (1, ACCEPTED)}
    assert one.pair(Device("a", b"\1" * 32, code="code"))
    assert not other.pair(Device("b", b"\2" * 32, code="code"))
    assert [device.client_id for device in other.devices()] == ["a"]
    assert other.codes() == {}


def test_another_process_is_noticed(tmp_path):
    running, command = Registry(tmp_path / "lab.db"), Registry(tmp_path / "lab.db")
    running.was_edited()
    assert not running.was_edited()
    command.put(A)
    assert running.was_edited()
    assert not running.was_edited()
    assert running.device("a") == A
    running.put(B)
    assert not running.was_edited()


def test_each_start_of_the_coordinator_counts(tmp_path):
    assert [Registry(tmp_path / "lab.db").next_session() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"no database", "version"])
def test_a_list_that_cannot_be_read_is_no_empty_list(damage, tmp_path):
    path = tmp_path / "lab.db"
    Registry(path).close()
    if damage == b"":
        path.unlink()
        path.mkdir()
    elif damage == "version":
        with sqlite3.connect(path) as db:
            db.execute("pragma user_version = 9")
    else:
        path.write_bytes(damage * 100)
    with pytest.raises(ConfigError, match=r"lab\.db"):
        Registry(path)


def test_a_device_is_accepted_unless_it_is_said_otherwise():
    assert A.status == ACCEPTED
