"""A federation of real processes, for the tests that start, kill and compare them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from protocol.config import dumps

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "only-for-this-test"


class Federation:
    """One coordinator and its clients, each `sparsefleet` in a process of its own."""

    def __init__(self, home: Path, folder: Path, num_clients: int) -> None:
        self.home, self.folder, self.num_clients = home, folder, num_clients
        self.client_command, self.client_folder = [sys.executable, "-m", "tools.cli"], ROOT
        self.out = folder / "run"
        self.experiment = folder / "experiment.toml"
        self.url = f"mqtt://127.0.0.1:{_free_port()}"
        self.fleet, self.username, self.password = "fleet", "device", PASSWORD
        self.coordinator: subprocess.Popen[str] | None = None
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(
        self, method: dict[str, Any], rounds: int, broker: dict[str, Any] | None = None, **cohort: Any
    ) -> None:
        """Write the experiment; without `broker` the embedded one is used."""
        port = int(self.url.rpartition(":")[2])
        self.experiment.write_text(
            dumps(
                {
                    "artifact": str(self.home / "artifact"),
                    "data": str(self.home / "data"),
                    "rounds": rounds,
                    "method": method,
                    "training": {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.05, "momentum": 0.9},
                    "cohort": {"clients": self.num_clients, "deadline_s": 60, "join_timeout_s": 60, **cohort},
                    "broker": broker or {"port": port, "client_password": PASSWORD},
                }
            )
        )

    def start_coordinator(self, *arguments: str, password: str = "") -> None:
        command = [sys.executable, "-m", "tools.cli", "run", str(self.experiment), "--json", *arguments]
        self.coordinator = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "SPARSEFLEET_PASSWORD": password},
            # Where the tests run in the background, children would inherit an ignored Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_client(self, number: int, *arguments: str) -> None:
        client_id = f"client-{number:03}"
        command = [*self.client_command, "-v", "client", "--client-id", client_id, "--broker", self.url]
        command += [
            "--data",
            str(self.home / "data" / f"{client_id}.npz"),
            "--state",
            str(self.folder / client_id),
        ]
        command += ["--fleet", self.fleet, "--threads", "1", "--exit-after-run", *arguments]
        with (self.folder / f"{client_id}.log").open("ab") as log:
            self.clients[client_id] = subprocess.Popen(
                command,
                cwd=self.client_folder,
                env={**os.environ, "SPARSEFLEET_PASSWORD": self.password},
                stdout=log,
                stderr=log,
            )

    def start_clients(self, *arguments: str) -> None:
        for number in range(self.num_clients):
            self.start_client(number, *arguments)

    def kill(self, number: int) -> None:
        """Kill -9."""
        client = self.clients[f"client-{number:03}"]
        client.send_signal(signal.SIGKILL)
        client.wait()

    def finish(self, timeout_s: float = 90.0) -> dict[str, Any]:
        """Wait for the coordinator; return its summary."""
        assert self.coordinator is not None
        out, err = self.coordinator.communicate(timeout=timeout_s)
        assert self.coordinator.returncode == 0, err + self.logs()
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def events(self) -> list[dict[str, Any]]:
        path = self.out / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def await_event(self, timeout_s: float = 60.0, **wanted: Any) -> None:
        """Wait until an event with these fields was recorded."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if any(all(event.get(key) == value for key, value in wanted.items()) for event in self.events()):
                return
            assert self.coordinator is None or self.coordinator.poll() is None, (
                self.coordinator.communicate()[1]
            )
            time.sleep(0.02)
        raise AssertionError(f"no event {wanted}\n{self.events()}\n{self.logs()}")

    def logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in [self.coordinator, *self.clients.values()]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if self.coordinator is not None:
            for pipe in (self.coordinator.stdout, self.coordinator.stderr):
                if pipe is not None:
                    pipe.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
