"""What systemd does with one unit of Type=notify, as far as an update depends on it; and its systemctl.

Reads the real unit file: ExecStartPre, ExecStart, READY on NOTIFY_SOCKET, ExecStartPost, RestartSec,
TimeoutStartSec, WatchdogSec. Users, sandboxing and limits are not imitated.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

SYSTEMCTL = """#!{python}
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    connection.sendall(" ".join(sys.argv[1:]).encode())
    connection.shutdown(socket.SHUT_WR)
    sys.stdout.write(connection.makefile().read())
"""


class Supervisor:
    """One unit, run below a root that stands for /."""

    def __init__(self, unit: Path, root: Path, folder: Path, restart_s: float | None = None) -> None:
        folder.mkdir(parents=True)
        self.log = folder / "log"
        self.events: list[tuple[float, str]] = []  # Monotonic time; "start", "ready", "exit CODE", "killed".
        self._root, self._folder = root, folder
        self._lines = [line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line]
        self._restart_s = float(self._one("RestartSec")) if restart_s is None else restart_s
        self._wanted, self._is_over = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._active, self._status, self._restarts = "inactive", "", 0
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        self._control = folder / "control"
        script = bin_folder / "systemctl"
        script.write_text(SYSTEMCTL.format(python=sys.executable, address=str(self._control)))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        self._threads = [threading.Thread(target=target) for target in (self._run, self._serve)]

    def __enter__(self) -> Supervisor:
        """Wait for commands."""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._control))
        self._server.listen()
        self._server.settimeout(0.1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the client."""
        self._is_over.set()
        self._stop()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _one(self, key: str) -> str:
        return next(value for name, value in self._lines if name == key)

    def _command(self, key: str) -> list[str]:
        words = shlex.split(self._one(key).lstrip("-+"))
        return [
            str(self._root / word[1:]) if word.startswith(("/opt/", "/etc/", "/var/")) else word
            for word in words
        ]

    def _note(self, event: str) -> None:
        self.events.append((time.monotonic(), event))

    def _run(self) -> None:
        while not self._is_over.is_set():
            if not self._wanted.wait(0.05):
                continue
            self._attempt()
            self._active = "activating" if self._wanted.is_set() else "inactive"
            until_s = time.monotonic() + self._restart_s
            while self._wanted.is_set() and time.monotonic() < until_s and not self._is_over.is_set():
                time.sleep(0.02)
            self._restarts += self._wanted.is_set()

    def _attempt(self) -> None:
        self._active, self._status = "activating", ""
        name = self._folder / f"notify-{len(self.events)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.log.open("ab") as log:
            told.bind(str(name))
            told.settimeout(0.05)
            subprocess.run(self._command("ExecStartPre"), stdout=log, stderr=log)
            watchdog_s = float(self._one("WatchdogSec"))
            environment = {
                "NOTIFY_SOCKET": str(name),
                "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
                "PATH": self.path,
            }
            self._process = subprocess.Popen(
                self._command("ExecStart"), stdout=log, stderr=log, env=environment, cwd="/"
            )
            self._note("start")
            fed_s, is_ready = time.monotonic(), False
            while self._process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    for line in told.recv(4096).decode().splitlines():
                        key, _, value = line.partition("=")
                        if key == "STATUS":
                            self._status = value
                        elif line == "READY=1":
                            is_ready, self._active = True, "active"
                            self._note("ready")
                            subprocess.run(self._command("ExecStartPost"), stdout=log, stderr=log)
                        fed_s = time.monotonic()
                limit_s = watchdog_s if is_ready else float(self._one("TimeoutStartSec"))
                if time.monotonic() - fed_s > limit_s:
                    self._note("killed")
                    self._process.kill()
            self._note(f"exit {self._process.wait()}")

    def _stop(self) -> None:
        self._wanted.clear()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + 20
        while (
            self._active != "inactive"
            and time.monotonic() < until_s
            and any(t.is_alive() for t in self._threads[:1])
        ):
            time.sleep(0.02)

    def _serve(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            with connection:
                words = connection.makefile().read().split()
                connection.sendall(self.answer(*words).encode())

    def answer(self, *words: str) -> str:
        """What the command prints."""
        if words[0] == "stop":
            self._stop()
        elif words[0] == "start":
            self._restarts = 0
            self._active = "activating"
            self._wanted.set()
        elif words[0] == "show":
            pid = self._process.pid if self._process is not None and self._process.poll() is None else 0
            return f"ActiveState={self._active}\nMainPID={pid}\nNRestarts={self._restarts}\nStatusText={self._status}\n"
        else:
            raise AssertionError(words)
        return ""
