"""Brokers that can be killed: each in a process of its own, with the users and rules of tests/conftest.py.

python -m tests.faults.brokers PORT FLEET runs aMQTT alone, as the coordinator embeds it.
"""

from __future__ import annotations

import subprocess
import sys
import threading

from coordinator.broker import EmbeddedBroker
from tests.conftest import FLEET, ROOT, USERS, free_port


class AmqttAlone:
    """The embedded broker in its own process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.brokers", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        """Kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


if __name__ == "__main__":
    with EmbeddedBroker(users=USERS, fleet=FLEET, port=int(sys.argv[1])):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        threading.Event().wait()
