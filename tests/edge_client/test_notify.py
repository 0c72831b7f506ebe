"""What systemd would receive, on a real datagram socket."""

from __future__ import annotations

import socket

import pytest

from edge_client import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """A socket as systemd binds it, and its name in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@sparsefleet-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0", 1))
        bound.settimeout(1.0)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield bound


def test_each_word_arrives(manager):
    notify.ready("connecting to mqtt://laptop:1883")
    assert manager.recv(1000) == b"READY=1\nSTATUS=connecting to mqtt://laptop:1883"
    notify.status("joined, waiting for a task")
    assert manager.recv(1000) == b"STATUS=joined, waiting for a task"
    notify.stopping()
    assert manager.recv(1000) == b"STOPPING=1"


def test_the_watchdog_is_fed_four_times_in_its_interval(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    now_s = [100.0]
    monkeypatch.setattr(notify.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(notify, "_beaten_s", 0.0)
    for now_s[0] in (100.0, 100.5, 101.9, 102.0, 103.0):
        notify.beat()
    manager.setblocking(False)
    assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_without_a_watchdog_or_a_manager_nothing_is_sent(manager, monkeypatch):
    monkeypatch.setattr(notify, "_beaten_s", 0.0)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify.beat()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify.status("lost")  # And no error: training goes on.
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.status("lost")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
