"""Real brokers for tests: a mosquitto process and the embedded one, each on a free loopback port.

Both know the same users and rules: "coordinator" and "device", with their names reversed as passwords.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
pattern read sf/1/{FLEET}/blob/#
pattern read sf/1/{FLEET}/coord/state
"""


class Mosquitto:
    """A mosquitto process of our own, never the system's."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
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
