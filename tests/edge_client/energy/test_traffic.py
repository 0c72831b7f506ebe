from __future__ import annotations

import os
import socket
from collections import namedtuple

import psutil
import pytest

from edge_client.energy import traffic
from edge_client.energy.meter import Meter
from edge_client.energy.source import NoSource
from edge_client.energy.traffic import Moved, Traffic

Net = namedtuple("Net", "bytes_sent bytes_recv")


def test_what_is_written_and_sent_during_a_phase_is_counted(tmp_path):
    meter = Meter(NoSource(), traffic=Traffic())
    with meter.phase("upload"):
        with (tmp_path / "file").open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        listener = socket.create_server(("127.0.0.1", 0))
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
        sender.sendall(bytes(50_000))
        received = 0
        while received < 50_000:
            received += len(receiver.recv(1 << 16))
        for one in (listener, sender, receiver):
            one.close()
    (phase,) = meter.take()
    if hasattr(psutil.Process(), "io_counters"):
        assert phase.disk_written_bytes is not None
        assert phase.disk_written_bytes >= 0  # The file system may keep it in memory.
    assert phase.net_sent_bytes is not None
    assert phase.net_sent_bytes >= 50_000


def test_differences_are_of_the_phase_and_a_reset_is_unknown(monkeypatch):
    looks = iter([Net(100, 200), Net(1100, 2200), Net(1150, 2300), Net(2000, 2400), Net(0, 2500)])
    monkeypatch.setattr(traffic.psutil, "net_io_counters", lambda: next(looks))
    meter = Meter(NoSource(), traffic=Traffic())
    for name in ("encode", "upload"):
        with meter.phase(name):
            pass
    encode, upload = meter.take()
    assert (encode.net_sent_bytes, encode.net_received_bytes) == (50, 100)
    assert (upload.net_sent_bytes, upload.net_received_bytes) == (None, 100)


@pytest.mark.parametrize("error", [psutil.AccessDenied(), OSError(), AttributeError()])
def test_what_cannot_be_read_is_unknown(error, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    counted = Traffic()
    monkeypatch.setattr(counted._process, "io_counters", fail, raising=False)
    monkeypatch.setattr(traffic.psutil, "net_io_counters", lambda: None)
    counted.begin()
    assert counted.moved() == Moved()
