"""What systemd is told of a client (sd_notify(3)): that it runs, what it does, and that its loop is alive.

Where NOTIFY_SOCKET is not set, that is outside a unit with Type=notify, nothing is sent. READY means that
the configuration, the examples and the op library are good and the client is about to connect: a broker
that is away is no reason to kill it. The watchdog is fed by the loops that wait and train, not by
a thread of its own, so that a loop which hangs is noticed.
"""

from __future__ import annotations

import os
import socket
import time

# How the status begins until the broker has accepted: `sparsefleet device update` waits for another one.
CONNECTING = "connecting to"

_beaten_s = 0.0  # When the watchdog was fed last, on the monotonic clock.


def ready(status: str) -> None:
    """The start has succeeded."""
    _send(f"READY=1\nSTATUS={status}")


def status(text: str) -> None:
    """What `systemctl status` shows; one line."""
    _send(f"STATUS={text}")


def stopping() -> None:
    """The client is about to leave by itself, or was told to."""
    _send("STOPPING=1")


def beat() -> None:
    """Feed the watchdog. Cheap: it sends four times in the unit's WatchdogSec at most."""
    global _beaten_s
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    now_s = time.monotonic()
    if limit_us.isdigit() and now_s - _beaten_s >= int(limit_us) / 4e6:
        _beaten_s = now_s
        _send("WATCHDOG=1")


def _send(message: str) -> None:
    """Send one datagram; a manager that does not listen is not this client's problem."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(1.0)
            connection.sendto(message.encode(), address)
    except OSError:
        return
