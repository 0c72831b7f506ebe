"""Loopback, aMQTT and mosquitto behave alike: one list of behaviours, run against all three."""

import contextlib
import gc
import socket
import threading
import time

import psutil
import pytest

from protocol import in_flight, mqtt, topics
from protocol.blob_store import BlobStore, Publisher
from protocol.blobs import Assembly
from protocol.errors import ConfigError, TransportError
from protocol.messages import BlobRef
from protocol.topics import Topics
from protocol.transport import LoopbackHub, Packet, Transport, Will

LAB = Topics("lab")
STATE = LAB.of(topics.STATE, "pi-1")
TASK = LAB.of(topics.TASK, "pi-1")
HELLO = LAB.of(topics.HELLO)
WAIT_S = 10.0  # A test that waits as long as this has failed.
QUIET_S = 0.3  # How long nothing must arrive.


class Loopbacks:
    """The broker in memory, with the face of the others."""

    def __init__(self) -> None:
        self.hub = LoopbackHub()

    def connect(self, client_id: str, will: Will | None = None) -> Transport:
        return self.hub.connect(client_id, will)

    def restart(self) -> None:
        self.hub.restart()


class Brokers:
    """A real broker and the connections to it."""

    def __init__(self, server) -> None:
        self.server = server
        self.url = server.url
        self.connections: list[mqtt.MqttTransport] = []

    def connect(self, client_id: str, will: Will | None = None, **options) -> mqtt.MqttTransport:
        user, password = ("coordinator", "rotanidrooc") if client_id == "coord" else ("device", "ecived")
        connection = mqtt.connect(self.url, client_id, user, password, will, **options)
        self.connections.append(connection)
        return connection

    def restart(self) -> None:
        self.server.stop()
        self.server.start()


REAL = ["embedded_broker", pytest.param("mosquitto", marks=pytest.mark.mosquitto)]


@pytest.fixture
def broker(request):
    """Any of them; a test asks for some by parametrizing indirectly."""
    if request.param == "loopback":
        yield Loopbacks()
        return
    brokers = Brokers(request.getfixturevalue(request.param))
    yield brokers
    for connection in brokers.connections:
        connection.close()


everywhere = pytest.mark.parametrize("broker", ["loopback", *REAL], indirect=True)
really = pytest.mark.parametrize("broker", REAL, indirect=True)


def next_packet(transport: Transport) -> Packet:
    packet = transport.receive(WAIT_S)
    assert packet is not None, "nothing arrived"
    return packet


def until(condition) -> None:
    """Wait for what no packet announces."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


# All three


@everywhere
def test_packets_arrive_in_the_order_of_their_publication(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    for i in range(200):
        coordinator.publish(TASK, str(i).encode())
    assert [int(next_packet(device).payload) for _ in range(200)] == list(range(200))


@everywhere
def test_a_retained_packet_reaches_a_later_subscriber_until_an_empty_one_deletes_it(broker):
    device = broker.connect("pi-1")
    device.publish(STATE, b"first", retain=True)
    device.publish(STATE, b"second", retain=True)
    early, late = broker.connect("coord"), None
    for topic_filter in LAB.coordinator_filters():
        early.subscribe(topic_filter)
    while next_packet(early) != Packet(STATE, b"second"):
        pass  # If `first` was still on its way.
    device.publish(STATE, b"", retain=True)
    assert next_packet(early) == Packet(STATE, b"")
    early.close()
    late = broker.connect("coord")
    late.subscribe(LAB.root + "dev/+/state")
    assert late.receive(QUIET_S) is None


@everywhere
def test_a_packet_that_is_not_retained_does_not_reach_a_later_subscriber(broker):
    coordinator = broker.connect("coord")
    coordinator.subscribe(TASK)
    coordinator.publish(TASK, b"1")
    assert next_packet(coordinator) == Packet(TASK, b"1")
    device = broker.connect("pi-1")
    device.subscribe(TASK)
    assert device.receive(QUIET_S) is None


@everywhere
def test_the_will_of_a_killed_client_is_published_and_retained(broker):
    coordinator = broker.connect("coord")
    coordinator.subscribe(LAB.root + "dev/+/state")
    device = broker.connect("pi-1", Will(STATE, b"gone"))
    device.publish(STATE, b"here", retain=True)
    assert next_packet(coordinator) == Packet(STATE, b"here")
    device.kill()
    assert next_packet(coordinator) == Packet(STATE, b"gone")
    # The broker may retain the will after it has published it.
    until(lambda: retained(broker) == b"gone")


@everywhere
def test_a_will_is_made_for_each_connection(broker):
    device = broker.connect("pi-1", Will(STATE, lambda nth: str(nth).encode()))
    broker.restart()
    until(lambda: device.connections == 2)
    coordinator = broker.connect("coord")
    coordinator.subscribe(STATE)
    device.kill()
    assert next_packet(coordinator) == Packet(STATE, b"2")


def retained(broker) -> bytes | None:
    late = broker.connect("coord")
    late.subscribe(STATE)
    packet = late.receive(QUIET_S)
    late.close()
    return packet.payload if packet else None


@everywhere
def test_a_farewell_keeps_the_will_back(broker):
    coordinator = broker.connect("coord")
    coordinator.subscribe(LAB.root + "dev/+/state")
    device = broker.connect("pi-1", Will(STATE, b"gone"))
    device.publish(STATE, b"leaving", retain=True)
    device.close()
    assert next_packet(coordinator) == Packet(STATE, b"leaving")
    broker.connect("pi-1")  # Were the first connection still open, this would end it, with its will.
    assert coordinator.receive(QUIET_S) is None


@everywhere
def test_what_is_unsubscribed_stops(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    device.subscribe(HELLO)
    coordinator.publish(TASK, b"1")
    assert next_packet(device) == Packet(TASK, b"1")
    device.unsubscribe(TASK)
    time.sleep(QUIET_S if isinstance(broker, Brokers) else 0)
    coordinator.publish(TASK, b"2")
    coordinator.publish(HELLO, b"3")
    assert next_packet(device) == Packet(HELLO, b"3")


@everywhere
def test_a_restarted_broker_is_found_again_and_filters_are_subscribed_again(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    assert (coordinator.connections, device.connections) == (1, 1)
    broker.restart()
    until(lambda: (coordinator.connections, device.connections) == (2, 2))
    coordinator.publish(TASK, b"again")
    assert next_packet(device) == Packet(TASK, b"again")


@everywhere
def test_bytes_are_counted_with_their_topic_on_both_sides(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    for size in (0, 1, 1000):
        coordinator.publish(TASK, bytes(size))
    for _ in range(3):
        next_packet(device)
    # "sf/1/lab/dev/pi-1/task" has 22 bytes.
    assert coordinator.sent_bytes == device.received_bytes == 3 * 22 + 1001
    assert coordinator.received_bytes == device.sent_bytes == 0


@everywhere
def test_a_closed_connection_says_so(broker):
    device = broker.connect("pi-1")
    device.close()
    device.close()
    for action in (
        lambda: device.publish(STATE, b""),
        lambda: device.subscribe(TASK),
        lambda: device.receive(WAIT_S),
    ):
        with pytest.raises(TransportError, match="closed"):
            action()


SIZE = 20_000_000


def send(transport: Transport, topic: str, store: BlobStore, requests: str) -> None:
    """Publish what is asked for, until the transport is closed."""
    publisher = Publisher(store)
    with contextlib.suppress(TransportError):
        while (packet := transport.receive(WAIT_S)) is not None:
            if packet.topic != requests:
                continue
            digest, *chunks = packet.payload.decode().split()
            for chunk in publisher.due(digest, map(int, chunks), time.monotonic()):
                transport.publish(topic, store.chunk(digest, chunk))


def fetch(transport: Transport, topic: str, ref: BlobRef, requests: str) -> bytes:
    """Ask until all is there."""
    assembly = Assembly(ref, SIZE)
    end_s = time.monotonic() + 30
    while not assembly.is_complete:
        assert time.monotonic() < end_s, f"{len(assembly.missing)} chunks are missing"
        chunks = assembly.wanted(time.monotonic())
        if chunks is not None:
            transport.publish(requests, " ".join([ref.digest, *map(str, chunks)]).encode())
        packet = transport.receive(0.1)
        if packet is not None and packet.topic == topic:
            assembly.add(packet.payload)
    return bytes(assembly.bytes())


@everywhere
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_large_body_arrives_in_chunks(broker, direction):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    data = bytes(range(251)) * (SIZE // 251)
    store = BlobStore(SIZE)
    ref = store.put(data)
    if direction == "down":
        sender, receiver = coordinator, device
        topic, requests = LAB.of(topics.BLOB_DOWN, digest=ref.digest), LAB.of(topics.WANT, "pi-1")
    else:
        sender, receiver = device, coordinator
        topic, requests = LAB.of(topics.BLOB_UP, "pi-1", ref.digest), LAB.of(topics.FETCH, "pi-1")
    sender.subscribe(requests)
    receiver.subscribe(topic)
    thread = threading.Thread(target=send, args=(sender, topic, store, requests))
    thread.start()
    try:
        assert fetch(receiver, topic, ref, requests) == data
    finally:
        sender.close()
        thread.join(WAIT_S)


# Real brokers only


@really
def test_a_wrong_password_is_refused_naming_user_and_broker(broker):
    with pytest.raises(TransportError, match=rf"{broker.url} refused user 'device': Not authorized") as info:
        mqtt.connect(broker.url, "pi-1", "device", "guessed")
    assert "guessed" not in str(info.value)


@really
@pytest.mark.parametrize(
    ("user", "password"), [("", ""), ("nobody", ""), ("device", ""), ("coordinator", "ecived")]
)
def test_nobody_is_let_in_without_the_right_password(broker, user, password):
    with pytest.raises(TransportError, match="refused"):
        mqtt.connect(broker.url, "pi-1", user, password)


@really
def test_a_client_is_not_disturbed_by_one_that_guesses_passwords_under_its_id(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    for _ in range(3):
        with pytest.raises(TransportError, match="refused"):
            mqtt.connect(broker.url, "pi-1", "device", "guessed")
    coordinator.publish(TASK, b"1")
    assert next_packet(device) == Packet(TASK, b"1")
    assert device.connections == 1


@really
@pytest.mark.parametrize(
    "topic",
    [
        LAB.of(topics.STATE, "pi-2"),
        LAB.of(topics.UPDATE, "pi-2"),
        LAB.of(topics.TASK, "pi-1"),
        LAB.of(topics.BLOB_DOWN, digest="0" * 64),
        HELLO,
    ],
)
def test_a_device_cannot_publish_for_others(broker, topic):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    coordinator.subscribe(LAB.root + "#")
    device.publish(topic, b"forged", retain=True)
    device.publish(STATE, b"allowed")
    assert next_packet(coordinator) == Packet(STATE, b"allowed")


@really
@pytest.mark.parametrize("topic", [LAB.of(topics.STATE, "pi-2"), HELLO])
def test_a_device_cannot_leave_a_will_for_others(broker, topic):
    coordinator = broker.connect("coord")
    coordinator.subscribe(LAB.root + "#")
    try:
        broker.connect("pi-1", Will(topic, b"forged")).kill()
    except TransportError as error:
        assert "refused" in str(error)  # noqa: PT017  (aMQTT refuses the client, mosquitto only its will.)
    broker.connect("pi-3").publish(LAB.of(topics.STATE, "pi-3"), b"allowed")
    assert next_packet(coordinator) == Packet(LAB.of(topics.STATE, "pi-3"), b"allowed")
    assert coordinator.receive(QUIET_S) is None


def test_a_device_cannot_subscribe_to_what_others_get(embedded_broker):
    device = Brokers(embedded_broker).connect("pi-1")
    for topic_filter in (LAB.of(topics.TASK, "pi-2"), LAB.root + "dev/+/task", LAB.root + "#", "#", "$SYS/#"):
        with pytest.raises(TransportError, match="user 'device' may not"):
            device.subscribe(topic_filter)
    for topic_filter in (
        *LAB.client_filters("pi-1"),
        LAB.root + "blob/#",
        LAB.of(topics.BLOB_DOWN, digest="0" * 64),
    ):
        device.subscribe(topic_filter)
    device.close()


@pytest.mark.mosquitto
def test_a_device_gets_nothing_that_others_get(mosquitto):
    # Mosquitto accepts such filters and then delivers nothing.
    brokers = Brokers(mosquitto)
    coordinator, device = brokers.connect("coord"), brokers.connect("pi-1")
    device.subscribe(LAB.root + "#")
    coordinator.publish(LAB.of(topics.TASK, "pi-2"), b"1")
    coordinator.publish(TASK, b"2")
    assert next_packet(device) == Packet(TASK, b"2")
    device.close()
    coordinator.close()


@really
def test_a_second_connection_of_the_same_client_replaces_the_first(broker):
    coordinator, first = broker.connect("coord"), broker.connect("pi-1", Will(STATE, b"gone"))
    coordinator.subscribe(STATE)
    coordinator.publish(STATE, b"ready")
    assert next_packet(coordinator).payload == b"ready"
    second = broker.connect("pi-1")
    assert next_packet(coordinator) == Packet(STATE, b"gone")
    first.kill()  # Or it would come back and replace the second in turn.
    second.close()


@really
def test_a_connection_that_was_lost_meanwhile_can_be_killed(broker, monkeypatch):
    device, lost = broker.connect("pi-1"), socket.socket()
    lost.close()
    with monkeypatch.context() as patched:
        patched.setattr(device._client, "socket", lambda: lost)
        device.kill()
    with pytest.raises(TransportError, match="closed"):
        device.publish(STATE, b"gone")


@really
def test_a_connection_whose_thread_ends_while_it_is_told_to_can_be_killed(broker, monkeypatch):
    device = broker.connect("pi-1")
    stop = device._client.loop_stop

    def stop_as_it_ends() -> None:
        stop()
        device._client._thread.join()  # As paho does: by now it has forgotten the thread.

    monkeypatch.setattr(device._client, "loop_stop", stop_as_it_ends)
    device.kill()
    assert device._client.socket() is None


@really
@pytest.mark.parametrize("end", ["close", "kill"])
def test_whoever_ends_a_connection_gets_its_sockets_back_at_once(broker, end):
    """Not when garbage is collected: `select`, by which paho waits, takes no file numbers from 1,024 on."""
    process = psutil.Process()
    gc.disable()
    try:
        before = process.num_fds()
        device = broker.connect("pi-1")
        assert process.num_fds() > before
        getattr(device, end)()
        until(lambda: process.num_fds() <= before)  # A broker in this process has its own, too.
    finally:
        gc.enable()


@really
def test_who_was_killed_late_does_not_take_the_place_of_who_came_next(broker, monkeypatch):
    """On a busy machine: the thread that makes connections is told to stop only when it could have made one."""
    first = broker.connect("pi-1")
    stop = first._client.loop_stop

    def stop_late() -> None:
        time.sleep(5 * mqtt.ENDING_S)
        stop()

    monkeypatch.setattr(first._client, "loop_stop", stop_late)
    kill = threading.Thread(target=first.kill)
    kill.start()
    second = broker.connect("pi-1")
    kill.join()
    second.publish(STATE, b"here", retain=True)
    until(lambda: retained(broker) == b"here")
    assert second.connections == 1


@really
def test_what_is_published_without_a_connection_arrives_after_it(broker):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    broker.server.stop()
    until(lambda: not coordinator._client.is_connected())
    coordinator.publish(TASK, b"patience")
    broker.server.start()
    until(lambda: device.connections == 2)
    # It may come before the device has subscribed: then nobody would have it, as the contract says.
    for _ in range(100):
        coordinator.publish(TASK, b"again")
        packet = device.receive(0.1)
        if packet is not None:
            break
    assert packet is not None
    assert packet.payload in (b"patience", b"again")


@really
def test_publishing_waits_and_then_fails_when_nothing_is_acknowledged(broker):
    device = broker.connect("pi-1", publish_timeout_s=0.3)
    broker.server.stop()
    for _ in range(in_flight.MAX_IN_FLIGHT_PACKETS):
        device.publish(STATE, b"")
    with pytest.raises(TransportError, match=r"acknowledged nothing for 0\.3 s; 32 packets"):
        device.publish(STATE, b"")


@really
def test_a_packet_that_is_too_large_is_dropped_and_counted(broker, monkeypatch):
    coordinator, device = broker.connect("coord"), broker.connect("pi-1")
    device.subscribe(TASK)
    with pytest.raises(ValueError, match="at most"):
        coordinator.publish(TASK, bytes(mqtt.MAX_PAYLOAD_BYTES + 1))
    coordinator.publish(TASK, bytes(mqtt.MAX_PAYLOAD_BYTES))
    assert len(next_packet(device).payload) == mqtt.MAX_PAYLOAD_BYTES
    monkeypatch.setattr(mqtt, "MAX_PAYLOAD_BYTES", 100)
    coordinator.publish(TASK, bytes(100))
    coordinator._client.publish(TASK, bytes(101), 1)
    coordinator.publish(TASK, b"after")
    assert [len(next_packet(device).payload) for _ in range(2)] == [100, 5]
    assert device.num_dropped == 1


@really
def test_who_waits_to_publish_behind_a_flood_does_not_wait_for_itself_to_fetch(broker, monkeypatch):
    """The acknowledgement comes behind packets for which the queue has no room."""
    monkeypatch.setattr(mqtt, "MAX_QUEUED_PACKETS", 4)
    coordinator, device = broker.connect("coord"), broker.connect("pi-1", publish_timeout_s=8)
    device.subscribe(TASK)
    for _ in range(50):
        coordinator.publish(TASK, b"flood")
    until(lambda: len(device._queue) == 4)
    monkeypatch.setattr(in_flight, "MAX_IN_FLIGHT_PACKETS", 1)
    for _ in range(3):
        device.publish(STATE, b"")
    assert device.num_dropped > 0
    assert [next_packet(device).payload for _ in range(4)] == [b"flood"] * 4


def test_nobody_listening_names_host_and_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(TransportError, match=rf"127\.0\.0\.1, port {port}.*refused.*Is it running"):
        mqtt.connect(f"mqtt://127.0.0.1:{port}", "pi-1", "device", "ecived")


def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_allowed():
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(TransportError, match=r"gave no answer in 0\.2 s"),
    ):
        mqtt.connect(f"mqtt://127.0.0.1:{mute.getsockname()[1]}", "pi-1", "device", "ecived", timeout_s=0.2)


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://a", "mqtt://", "mqtt://a:port", "mqtt://a/b", "mqtt://a:99999"]
)
def test_a_url_of_another_form_is_refused(url):
    with pytest.raises(ConfigError, match="broker URL"):
        mqtt.connect(url, "pi-1", "device", "ecived")


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as info:
        mqtt.connect("mqtt://device:ecived@host", "pi-1", "", "")
    assert "ecived" not in str(info.value)
