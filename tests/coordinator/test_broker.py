"""The embedded broker: quick to start, closed to strangers, and gone without a trace."""

import asyncio
import gc
import logging
import socket
import threading
import time

import psutil
import pytest

from coordinator import broker as broker_module
from coordinator.broker import EmbeddedBroker, _Subscriptions, may_publish, may_subscribe
from protocol import mqtt, topics
from protocol.blobs import CHUNK_BYTES, pack_chunk
from protocol.errors import ConfigError, TransportError
from protocol.topics import Topics

LAB = Topics("lab")
USERS = {"coordinator": "rotanidrooc", "device": "ecived"}
DIGEST = "0" * 64


def test_it_starts_within_two_seconds_and_keeps_its_port():
    broker = EmbeddedBroker(users=USERS, fleet="lab")
    start_s = time.monotonic()
    broker.start()
    assert time.monotonic() - start_s < 2
    port = broker.port
    broker.stop()
    broker.start()
    assert broker.url == f"mqtt://127.0.0.1:{port}"
    broker.stop()
    broker.stop()


def test_a_port_in_use_is_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(
            TransportError, match=rf"port {other.getsockname()[1]}: Address already in use.*another broker"
        ),
    ):
        EmbeddedBroker(users=USERS, fleet="lab", port=other.getsockname()[1]).start()


def test_an_address_of_another_machine_is_named():
    with pytest.raises(TransportError, match=r"192\.0\.2\.1"):
        EmbeddedBroker(users=USERS, fleet="lab", bind="192.0.2.1").start()


@pytest.mark.parametrize("users", [{}, {"coordinator": ""}])
def test_there_is_no_broker_without_passwords(users):
    with pytest.raises(ConfigError, match="password"):
        EmbeddedBroker(users=users, fleet="lab")


def test_it_cannot_be_started_twice(embedded_broker):
    with pytest.raises(RuntimeError, match="already"):
        embedded_broker.start()


def test_stopping_leaves_no_thread_no_port_and_no_warning(caplog):
    caplog.set_level(logging.WARNING)
    with EmbeddedBroker(users=USERS, fleet="lab") as broker:
        coordinator = mqtt.connect(broker.url, "coord", "coordinator", USERS["coordinator"])
        device = mqtt.connect(broker.url, "pi-1", "device", USERS["device"])
        device.subscribe(LAB.of(topics.TASK, "pi-1"))
        coordinator.publish(LAB.of(topics.TASK, "pi-1"), b"1")
        assert device.receive(10) is not None
        # One that never says CONNECT, and must not be waited for.
        idle = socket.create_connection(("127.0.0.1", broker.port))
        device.close()
        coordinator.close()
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 5
    idle.close()
    assert [thread.name for thread in threading.enumerate() if "broker" in thread.name] == []
    assert [record.getMessage() for record in caplog.records] == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port), 1)


def test_a_client_that_says_nothing_is_cut_off(embedded_broker, monkeypatch):
    monkeypatch.setattr(broker_module, "CONNECT_S", 0.1)
    with socket.create_connection(("127.0.0.1", embedded_broker.port)) as idle:
        idle.settimeout(10)
        assert idle.recv(1) == b""


@pytest.mark.slow
def test_a_client_on_a_slow_link_costs_one_line_and_no_traceback(embedded_broker, caplog):
    # AMQTT waits 5 s for an acknowledgement.
    caplog.set_level(logging.WARNING)
    coordinator = mqtt.connect(embedded_broker.url, "coord", "coordinator", USERS["coordinator"])
    device = mqtt.connect(embedded_broker.url, "pi-1", "device", USERS["device"])
    device.subscribe(LAB.of(topics.TASK, "pi-1"))
    device._client.manual_ack_set(True)
    coordinator.publish(LAB.of(topics.TASK, "pi-1"), b"1")
    end_s = time.monotonic() + 10
    while not caplog.records and time.monotonic() < end_s:
        time.sleep(0.05)
    assert device.receive(10).payload == b"1"
    for payload in (b"2", b"3"):  # aMQTT looks at failures when it has the next packet.
        coordinator.publish(LAB.of(topics.TASK, "pi-1"), payload)
        assert device.receive(10).payload == payload
    device.close()
    coordinator.close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1, messages
    assert "Timeout waiting for PUBACK" in messages[0]


def test_a_packet_above_the_limit_ends_the_connection(embedded_broker):
    device = mqtt.connect(embedded_broker.url, "pi-1", "device", USERS["device"])
    device._client.publish(LAB.of(topics.STATE, "pi-1"), bytes((1 << 20) + 1), 0)
    end_s = time.monotonic() + 10
    while device.connections == 1 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert device.connections == 2
    device.close()


def test_refused_clients_are_forgotten(embedded_broker):
    for _ in range(3):
        with pytest.raises(TransportError, match="refused"):
            mqtt.connect(embedded_broker.url, "pi-1", "device", "guessed")
    end_s = time.monotonic() + 10
    while sessions(embedded_broker) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert sessions(embedded_broker) == 0


def sessions(broker: EmbeddedBroker) -> int:
    """How many sessions aMQTT holds, asked in its own thread."""

    async def count() -> int:
        return len(broker._broker.sessions)

    return asyncio.run_coroutine_threadsafe(count(), broker._loop).result(5)


def test_twenty_clients_publish_chunks_at_once(embedded_broker, caplog):
    caplog.set_level(logging.WARNING)
    coordinator = mqtt.connect(embedded_broker.url, "coord", "coordinator", USERS["coordinator"])
    coordinator.subscribe(LAB.root + "dev/+/blob/+")
    num_clients, num_each = 20, 8
    clients = [
        mqtt.connect(embedded_broker.url, f"pi-{i}", "device", USERS["device"]) for i in range(num_clients)
    ]

    def publish(i: int) -> None:
        topic = LAB.of(topics.BLOB_UP, f"pi-{i}", DIGEST)
        for index in range(num_each):
            clients[i].publish(topic, pack_chunk(index, bytes([i]) * CHUNK_BYTES))

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(num_clients)]
    for thread in threads:
        thread.start()
    arrived = []
    while len(arrived) < num_clients * num_each:
        packet = coordinator.receive(20)
        assert packet is not None, f"only {len(arrived)} chunks arrived"
        address = LAB.parse(packet.topic)
        arrived.append((address.client_id, packet.payload[0]))
    for thread in threads:
        thread.join(10)
    assert sorted(arrived) == sorted(
        (f"pi-{i}", index) for i in range(num_clients) for index in range(num_each)
    )
    for client in clients:
        client.close()
    coordinator.close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("amqtt")] == []


# The rules, without a network


def test_a_device_may_do_what_the_table_says_and_nothing_else():
    may_do = {
        kind: (
            may_publish(LAB, "device", "pi-1", LAB.of(kind, "pi-1", DIGEST)),
            may_subscribe(LAB, "device", "pi-1", LAB.of(kind, "pi-1", DIGEST)),
        )
        for kind in topics.TABLE
    }
    assert may_do == {
        topics.STATE: (True, False),
        topics.TASK: (False, True),
        topics.UPDATE: (True, False),
        topics.WANT: (True, False),
        topics.FETCH: (False, True),
        topics.BLOB_UP: (True, False),
        topics.BLOB_DOWN: (False, True),
        topics.REPEAT: (False, True),
        topics.HELLO: (False, True),
    }


@pytest.mark.parametrize("kind", [kind for kind, rule in topics.TABLE.items() if "{id}" in rule.levels])
def test_a_device_may_do_nothing_as_another_client(kind):
    topic = LAB.of(kind, "pi-2", DIGEST)
    assert not may_publish(LAB, "device", "pi-1", topic)
    assert not may_subscribe(LAB, "device", "pi-1", topic)


@pytest.mark.parametrize(
    "topic_filter", ["#", "+/#", "sf/#", "sf/1/lab/#", "sf/1/lab/+/+/task", "sf/1/lab/dev/pi-1/+", "$SYS/#"]
)
def test_wildcards_are_no_way_around(topic_filter):
    assert not may_subscribe(LAB, "device", "pi-1", topic_filter)


def test_the_coordinator_stays_within_its_fleet():
    for topic in ("sf/1/lab/coord/state", "sf/1/lab/#"):
        assert may_publish(LAB, "coordinator", "coord", topic)
        assert may_subscribe(LAB, "coordinator", "coord", topic)
    for topic in ("sf/1/laboratory/coord/state", "sf/1/#", "#", "$SYS/x"):
        assert not may_publish(LAB, "coordinator", "coord", topic)
        assert not may_subscribe(LAB, "coordinator", "coord", topic)


def test_subscriptions_may_change_while_a_packet_is_delivered():
    """Between two of them aMQTT waits, and a client may subscribe: packets were lost by this."""
    subscriptions = _Subscriptions({"a": [1], "b": [2]})
    for topic, subscribers in subscriptions.items():
        subscriptions[topic + "/new"] = []
        subscriptions[topic].append(3)
        assert len(subscribers) == 1
    for topic in subscriptions:
        subscriptions[topic + "/newer"] = []
    assert len(subscriptions) == 8


@pytest.mark.parametrize("rubbish", [b"", b"\x10\xff\xff\xff\x7f", b"\x10\x05abcde", b"\x10\x04\x00\xffMQ"])
def test_strangers_who_leave_before_they_are_connected_leave_no_file_open(rubbish):
    # Not by the garbage collector's grace, which may come after the last file descriptor.
    with EmbeddedBroker(users=USERS, fleet="lab") as broker:
        gc.disable()
        try:
            before = psutil.Process().num_fds()
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", broker.port)) as stranger:
                    stranger.sendall(rubbish)
            end_s = time.monotonic() + 5
            while psutil.Process().num_fds() > before:
                assert time.monotonic() < end_s, "the broker keeps connections that have ended"
                time.sleep(0.02)
        finally:
            gc.enable()
