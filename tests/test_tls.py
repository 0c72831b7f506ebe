"""TLS to real brokers: what is let in, and what each refusal advises."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest

from coordinator import certificates
from coordinator.broker import EmbeddedBroker
from coordinator.certificates import Authority, server_files
from edge_client.config import read
from protocol import mqtt, topics
from protocol.errors import ConfigError, TransportError
from protocol.tls import Tls, demand
from protocol.transport import Packet
from tests.conftest import FLEET, MOSQUITTO, ROOT, USERS, Mosquitto, free_port
from tests.protocol.test_brokers import HELLO, LAB, STATE, TASK, next_packet
from tools.cli import main

LOCAL = ["127.0.0.1", "localhost"]


@pytest.fixture
def embedded(tmp_path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(USERS, FLEET, certificate=server_files(tmp_path / "home", LOCAL)) as broker:
        yield broker


def ca(home: Path) -> Tls:
    return Tls(str(home / "ca" / "ca.pem"))


def device(url: str, tls: Tls, client_id: str = "pi-1", **login: str) -> mqtt.MqttTransport:
    return mqtt.connect(
        url, client_id, login.get("username", "device"), login.get("password", USERS["device"]), tls=tls
    )


def test_messages_pass_the_embedded_broker_encrypted(embedded, tmp_path):
    assert embedded.url.startswith("mqtts://")
    tls = ca(tmp_path / "home")
    one = device(embedded.url, tls)
    coordinator = mqtt.connect(embedded.url, "coord", "coordinator", USERS["coordinator"], tls=tls)
    one.subscribe(TASK)
    coordinator.publish(TASK, bytes(200_000))
    assert next_packet(one) == Packet(TASK, bytes(200_000))
    assert isinstance(one._client.socket(), ssl.SSLSocket)
    one.close()
    coordinator.close()
    with pytest.raises(TransportError, match="it expects TLS"):
        device(embedded.url.replace("mqtts", "mqtt"), Tls())


# What each refusal advises


def test_another_authority_is_refused_with_its_cure(embedded, tmp_path):
    Authority.load_or_make(tmp_path / "other")
    for tls in (ca(tmp_path / "other"), Tls()):
        with pytest.raises(TransportError, match=r"was not issued by .*set \[broker\] ca"):
            device(embedded.url, tls)


def test_another_name_is_refused_with_its_cure(tmp_path):
    with EmbeddedBroker(USERS, FLEET, certificate=server_files(tmp_path, ["laptop.local"])) as broker:
        with pytest.raises(TransportError, match=r"for other names than '127.0.0.1'.*--name 127.0.0.1"):
            device(broker.url, ca(tmp_path))
        with pytest.raises(TransportError, match="--name localhost"):
            device(broker.url.replace("127.0.0.1", "localhost"), ca(tmp_path))


@pytest.mark.parametrize(
    ("begin", "years", "advice"),
    [
        (-20, -5, r"has expired, by this machine's clock, which says \d{4}-.*broker init --renew"),
        (1, 10, r"not valid yet, by this machine's clock, which says \d{4}-.*Set the clock"),
    ],
    ids=["expired", "a clock in the past"],
)
def test_a_time_outside_its_validity_is_refused_with_its_cure(begin, years, advice, tmp_path, monkeypatch):
    Authority.load_or_make(tmp_path)
    now = datetime.now(timezone.utc)
    monkeypatch.setattr(certificates, "BEGIN", now + timedelta(days=365 * begin))
    monkeypatch.setattr(certificates, "YEARS", years)
    with (
        EmbeddedBroker(USERS, FLEET, certificate=server_files(tmp_path, LOCAL)) as broker,
        pytest.raises(TransportError, match=advice),
    ):
        device(broker.url, ca(tmp_path))


def test_a_port_without_tls_is_refused_with_its_cure(tmp_path):
    Authority.load_or_make(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TransportError, match="Does the broker speak TLS on this port"):
            device(f"mqtts://127.0.0.1:{server.getsockname()[1]}", ca(tmp_path))
        thread.join()


@pytest.mark.parametrize("damage", ["missing", "rubbish"])
def test_a_file_that_is_none_is_named(damage, tmp_path):
    if damage == "rubbish":
        (tmp_path / "ca.pem").write_text("rubbish")
    with pytest.raises(ConfigError, match=r"ca\.pem.*the file ca/ca\.pem of the coordinator's folder"):
        device("mqtts://127.0.0.1:1", Tls(str(tmp_path / "ca.pem")))


def test_nothing_leaves_this_machine_in_the_clear_unless_it_is_said():
    for url in ("mqtt://127.0.0.1", "mqtt://localhost:1", "mqtt://[::1]:1883", "mqtts://laptop.local"):
        demand(url, plaintext=False)
    for url in ("mqtt://laptop.local", "mqtt://192.168.1.2:1883", "mqtt://127.0.0.1.example.org"):
        with pytest.raises(ConfigError, match="passwords would travel in the clear"):
            demand(url, plaintext=False)
        demand(url, plaintext=True)


def test_silent_tls_connections_do_not_hold_up_others(embedded, tmp_path):
    address = ("127.0.0.1", embedded.port)
    silent = [socket.create_connection(address) for _ in range(100)]
    device(embedded.url, ca(tmp_path / "home")).close()
    for one in silent:
        one.close()


# Generated configurations, with a real mosquitto


class Generated(Mosquitto):
    """A mosquitto with a configuration that `sparsefleet broker config` wrote."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port, self.folder, self.process = free_port(), folder / "broker", None
        self.url = f"mqtts://localhost:{self.port}"
        arguments = ["broker", "config", "--home", str(folder / "home"), "--out", str(self.folder)]
        arguments += ["--host", "localhost", "--port", str(self.port), "--fleet", FLEET, *options]
        assert main(arguments) == 0
        with (self.folder / "mosquitto.conf").open("a") as config:
            config.write(f"user root\nlog_dest file {self.folder}/log\n")

    def connect(self, name: str, client_id: str = "") -> mqtt.MqttTransport:
        """Connect with what was written for this user."""
        folder = self.folder / ("coordinator" if name == "coordinator" else f"devices/{name}")
        (folder / "client.toml").write_text(
            f'client_id = "x"\ndata = "x"\n{(folder / "broker.toml").read_text()}'
        )
        broker = read(folder / "client.toml").broker
        tls = Tls(broker.ca, broker.certificate, broker.key)
        return mqtt.connect(broker.url, client_id or name, broker.username, broker.password, tls=tls)


@pytest.fixture(params=[[], ["--by-certificate"]], ids=["password", "certificate"])
def generated(request, tmp_path) -> Iterator[Generated]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = Generated(tmp_path, "--device", "pi-1", "--device", "pi-2", *request.param)
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.mosquitto
def test_devices_with_users_of_their_own_speak_for_nobody_else(generated, fault):
    row = fault(17)
    coordinator, one, two = (generated.connect(name) for name in ("coordinator", "pi-1", "pi-2"))
    coordinator.subscribe(LAB.root + "#")
    for topic in (
        STATE,
        LAB.of(topics.UPDATE, "pi-1"),
        LAB.of(topics.BLOB_UP, "pi-1", "0" * 64),
        TASK,
        HELLO,
    ):
        two.publish(topic, b"forged", retain=True)
    two.publish(LAB.of(topics.STATE, "pi-2"), b"two")
    assert next_packet(coordinator) == Packet(LAB.of(topics.STATE, "pi-2"), b"two")
    row.trials, row.lost, row.double = 5, 0, 0
    one.publish(STATE, b"one")
    assert next_packet(coordinator) == Packet(STATE, b"one")
    one.subscribe(LAB.root + "#")
    coordinator.publish(LAB.of(topics.TASK, "pi-2"), b"not for one")
    coordinator.publish(TASK, b"for one")
    assert next_packet(one) == Packet(TASK, b"for one")
    # Under another's MQTT client id it would cut that one off; the user name takes its place.
    generated.connect("pi-2", client_id="pi-1").close()
    coordinator.publish(TASK, b"still there")
    assert next_packet(one) == Packet(TASK, b"still there")
    assert one.connections == 1
    for connection in (coordinator, one, two):
        connection.close()


@pytest.mark.mosquitto
def test_nobody_is_let_in_without_a_login(generated):
    tls = ca(generated.folder.parent / "home")
    for username, password in (("", ""), ("pi-1", ""), ("pi-1", "guessed"), ("coordinator", "")):
        with pytest.raises(TransportError, match=r"refused|closed the connection|TLS"):
            device(generated.url, tls, username=username, password=password)


@pytest.mark.mosquitto
def test_what_is_retained_survives_the_broker_and_packets_have_a_limit(tmp_path):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = Generated(tmp_path)
    broker.start()
    one = broker.connect("device", "pi-1")
    one.publish(STATE, b"here", retain=True)
    one.close()
    assert broker.process is not None
    broker.process.terminate()
    broker.process.wait()
    broker.start()
    coordinator = broker.connect("coordinator")
    coordinator.subscribe(STATE)
    assert next_packet(coordinator) == Packet(STATE, b"here")
    # A packet that claims 256 MB, from somebody without a password: cut off, and not kept.
    context = ca(tmp_path / "home").context()
    with (
        socket.create_connection(("localhost", broker.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stranger,
    ):
        stranger.sendall(b"\x10\xff\xff\xff\x7f\x00\x04MQTT\x04\xc2\x00\x0f")
        stranger.settimeout(20)
        with contextlib.suppress(OSError):
            for _ in range(64):
                stranger.sendall(bytes(1 << 20))
        with contextlib.suppress(OSError):
            assert stranger.recv(1) == b""
    assert broker.process is not None
    assert psutil.Process(broker.process.pid).memory_info().rss < 32e6
    coordinator.close()
    broker.stop()


@pytest.mark.slow
def test_the_generated_amqtt_configuration_runs(tmp_path):
    broker = tmp_path / "broker"
    port = free_port()
    options = ["--home", str(tmp_path / "home"), "--out", str(broker), "--kind", "amqtt", "--fleet", FLEET]
    assert (
        main(["broker", "config", *options, "--host", "localhost", "--port", str(port), "--device", "pi-1"])
        == 0
    )
    command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(broker / "amqtt.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("localhost", port), 1).close()
                break
            except OSError:
                threading.Event().wait(0.05)
        one, coordinator = (Generated.connect(_Written(broker), name) for name in ("pi-1", "coordinator"))
        coordinator.subscribe(LAB.root + "#")
        one.publish(LAB.of(topics.STATE, "pi-2"), b"forged")
        one.publish(STATE, b"allowed")
        assert next_packet(coordinator) == Packet(STATE, b"allowed")
        one.close()
        coordinator.close()
    finally:
        process.kill()
        process.wait()


class _Written(Generated):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
