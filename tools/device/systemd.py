"""What is asked of systemd, by systemctl."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass

from edge_client.notify import CONNECTING
from protocol.errors import UserError
from tools.device.layout import UNIT

POLL_S = 0.5
STABLE_S = 3.0  # For so long a client must stay joined.


class ServiceFailed(UserError):
    """systemd is not there, or refused."""


@dataclass(frozen=True)
class State:
    """What `systemctl show` says of the unit."""

    active: str  # "active", "activating", "failed", ...
    pid: int  # 0: no process.
    restarts: int
    status: str  # The client's own words.

    @property
    def is_joined(self) -> bool:
        """The client runs and the broker has accepted it."""
        return self.active == "active" and bool(self.status) and not self.status.startswith(CONNECTING)

    @property
    def is_busy(self) -> bool:
        """It is doing a task."""
        return self.is_joined and ": round " in self.status


def systemctl(*arguments: str) -> str:
    """Run it; return its output.

    Raises:
        ServiceFailed: it is missing, or refused; its words are in the text.
    """
    command = ["systemctl", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except FileNotFoundError as error:
        raise ServiceFailed("systemctl is not there: this system does not run systemd; use --root") from error
    if done.returncode != 0:
        raise ServiceFailed(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def state() -> State:
    """The unit now."""
    text = systemctl("show", UNIT, "--property=ActiveState,MainPID,NRestarts,StatusText")
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return State(
        found.get("ActiveState", "unknown"),
        int(found.get("MainPID") or 0),
        int(found.get("NRestarts") or 0),
        found.get("StatusText", ""),
    )


def restart(timeout_s: float, must_join: bool) -> str:
    """Restart the client and wait until it stays up, joined if it must; return "", or why it is not well.

    One that systemd started again meanwhile is not well: it had crashed.
    """
    systemctl("stop", UNIT)
    systemctl("start", "--no-block", UNIT)
    until_s, well_since_s = time.monotonic() + timeout_s, None
    first, pid = state(), 0
    while time.monotonic() < until_s:
        now = state()
        if now.active == "failed" or now.restarts > first.restarts or (pid and now.pid != pid):
            return f"it ended while it started ({now.active})"
        pid = pid or now.pid
        is_well = now.is_joined if must_join else now.active == "active"
        if not is_well:
            well_since_s = None
        elif well_since_s is None:
            well_since_s = time.monotonic()
        elif time.monotonic() - well_since_s >= STABLE_S:
            return ""
        time.sleep(POLL_S)
    return f"it was not {'joined' if must_join else 'ready'} after {timeout_s:.0f} s ({state().status or 'no status'})"
