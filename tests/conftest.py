"""Real brokers and real federations for tests, each process our own and on a free loopback port.

The brokers know the same users and rules: "coordinator" and "device", with their names reversed as
passwords.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from protocol.config import dumps

# The same examples in every run and no deadline for one, so that a change is not blamed for a case that nobody
# had met before; the others are met by `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

pytest_plugins = ["tests.faults.record"]

FLEET = "lab"
USERS = {"coordinator": "rotanidrooc", "device": "ecived"}

# On Debian it is in /usr/sbin, which a user's PATH does not have.
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/acl
persistence false
log_dest file {folder}/log
max_packet_size 1048576
max_queued_messages 10000
user root
"""

ACL = f"""\
user coordinator
topic readwrite sf/1/{FLEET}/#

pattern write sf/1/{FLEET}/dev/%c/state
pattern write sf/1/{FLEET}/dev/%c/update
pattern write sf/1/{FLEET}/dev/%c/want
pattern write sf/1/{FLEET}/dev/%c/blob/+
pattern read sf/1/{FLEET}/dev/%c/task
pattern read sf/1/{FLEET}/dev/%c/fetch
pattern read sf/1/{FLEET}/dev/%c/repeat/+
pattern read sf/1/{FLEET}/blob/#
pattern read sf/1/{FLEET}/coord/state
"""


class Mosquitto:
    """A mosquitto process of our own, never the system's."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "mosquitto.conf").write_text(CONFIG.format(port=self.port, folder=folder))
        (folder / "acl").write_text(ACL)
        (folder / "passwords").touch(0o600)
        for name, password in USERS.items():
            command = ["mosquitto_passwd", "-b", str(folder / "passwords"), name, password]
            subprocess.run(command, check=True, capture_output=True)

    def start(self) -> None:
        command = [MOSQUITTO, "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # It writes a log.
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)  # The one wait that nothing can announce.
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session", autouse=True)
def no_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys and lists of devices of tests never lie among those of the person who runs them."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto with passwords and access rules."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def embedded_broker():
    """The running aMQTT broker."""
    from coordinator.broker import EmbeddedBroker

    with EmbeddedBroker(users=USERS, fleet=FLEET) as broker:
        yield broker


ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "only-for-this-test"


class Federation:
    """One coordinator and its clients, each `sparsefleet` in a process of its own."""

    def __init__(self, home: Path, folder: Path, num_clients: int) -> None:
        self.home, self.folder, self.num_clients = home, folder, num_clients
        self.client_command, self.client_folder = [sys.executable, "-m", "tools.cli"], ROOT
        self.client_environment: dict[str, str] = {}
        self.out = folder / "run"
        self.experiment = folder / "experiment.toml"
        self.url = f"mqtt://127.0.0.1:{free_port()}"
        self.fleet, self.username, self.password = "fleet", "device", PASSWORD
        self.coordinator: subprocess.Popen[str] | None = None
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        method: dict[str, Any],
        rounds: int,
        broker: dict[str, Any] | None = None,
        momentum: float = 0.9,
        **cohort: Any,
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
                    "training": {
                        "local_epochs": 1,
                        "batch_size": 32,
                        "learning_rate": 0.05,
                        "momentum": momentum,
                    },
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
                env={**os.environ, "SPARSEFLEET_PASSWORD": self.password, **self.client_environment},
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
        written = path.read_text() if path.is_file() else ""
        whole = written[: written.rfind("\n") + 1]  # The last line may be half written, as on a full disk.
        return [json.loads(line) for line in whole.splitlines()]

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


def free_port() -> int:
    """Return a port below those that the kernel gives away, which may be another test's before a broker listens."""
    draw = random.SystemRandom()  # Not what a test may have seeded: two workers would draw the same.
    while True:
        port = draw.randrange(10_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


Federate = Callable[..., Federation]


@pytest.fixture
def federate(tmp_path: Path) -> Iterator[Federate]:
    """Make federations of (home, num_clients), where home has artifact/ and data/."""
    made: list[Federation] = []

    def make(home: Path, num_clients: int) -> Federation:
        made.append(Federation(home, tmp_path / f"federation-{len(made)}", num_clients))
        return made[-1]

    yield make
    for one in made:
        one.close()
