"""Loopback behaves as a broker does, and filters select as MQTT says."""

import threading

import pytest

from protocol.errors import TransportError
from protocol.transport import LoopbackHub, Packet, matches


@pytest.mark.parametrize(
    ("topic_filter", "topic", "is_match"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a/b/c", True),
        ("+", "/a", False),
        ("+/+", "/a", True),
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
    ],
)
def test_filters_select_as_mqtt_says(topic_filter, topic, is_match):
    assert matches(topic_filter, topic) is is_match


def test_overlapping_filters_deliver_once():
    client = LoopbackHub().connect("a")
    client.subscribe("t/#")
    client.subscribe("t/+")
    client.publish("t/x", b"1")
    assert client.receive(0) == Packet("t/x", b"1")
    assert client.receive(0) is None


def test_a_full_queue_names_the_receiver_and_the_limit():
    hub = LoopbackHub(max_queued_packets=2)
    slow, fast = hub.connect("slow"), hub.connect("fast")
    slow.subscribe("t")
    fast.publish("t", b"1")
    fast.publish("t", b"2")
    with pytest.raises(TransportError, match="'slow' is full: 2 packets"):
        fast.publish("t", b"3")
    assert slow.receive(0) == Packet("t", b"1")
    fast.publish("t", b"4")


def test_a_queue_is_limited_in_bytes_too():
    hub = LoopbackHub(max_queued_bytes=100)
    client = hub.connect("a")
    client.subscribe("t")
    client.publish("t", bytes(60))
    with pytest.raises(TransportError, match="61 bytes"):
        client.publish("t", bytes(60))
    client.receive(0)
    client.publish("t", bytes(60))


def test_a_second_connection_of_the_same_id_cuts_off_the_first():
    hub = LoopbackHub()
    first = hub.connect("a")
    second = hub.connect("a")
    with pytest.raises(TransportError, match="closed"):
        first.publish("t", b"")
    first.close()  # Must not remove the second.
    second.subscribe("t")
    second.publish("t", b"1")
    assert second.receive(0) == Packet("t", b"1")


def test_closing_wakes_a_waiting_receiver():
    client = LoopbackHub().connect("a")
    problems: list[TransportError] = []

    def wait() -> None:
        with pytest.raises(TransportError, match="closed") as info:
            client.receive(30)
        problems.append(info.value)

    thread = threading.Thread(target=wait)
    thread.start()
    client.close()
    thread.join(10)
    assert len(problems) == 1


def test_a_restarted_hub_forgets_and_its_clients_know_that_they_reconnected():
    hub = LoopbackHub()
    client = hub.connect("a")
    client.subscribe("t")
    client.publish("t", b"kept", retain=True)
    hub.restart()
    assert client.connections == 2
    assert client.receive(0) is None
    client.subscribe("t")
    assert client.receive(0) is None
    client.publish("t", b"1")
    assert client.receive(0) == Packet("t", b"1")
