"""Transport: the one hole through which every message passes, and Loopback, which needs no network.

A transport publishes packets on topics and receives those that its filters match. `mqtt.py` is the
same over a broker; the code above cannot tell them apart, and a simulation is that same code over
Loopback.

Delivery is at least once while the connection lasts, in order for each publisher, and nothing is
kept for a client that is away: what must not be lost is asked for again (blobs.py) or repeated until
it is answered. `connections` counts the connects: when it changes, the peer may have lost what was
sent before, and a daemon announces itself again. Subscriptions survive by themselves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from protocol.errors import TransportError

# A queue that has grown this long belongs to a receiver that has stopped. Chunks have up to 128 KiB, so
# bytes are what fills memory; packets are what fills time.
MAX_QUEUED_PACKETS = 10_000
MAX_QUEUED_BYTES = 128 << 20


@dataclass(frozen=True)
class Packet:
    """One message on one topic."""

    topic: str
    payload: bytes

    @property
    def num_bytes(self) -> int:
        """Application bytes: topic and payload, without what MQTT and TCP add."""
        return len(self.topic.encode()) + len(self.payload)


@dataclass(frozen=True)
class Will:
    """What is published for a client that goes without a farewell."""

    topic: str
    payload: bytes | Callable[[int], bytes]  # Or what makes it for the nth connection, counted from 1.
    retain: bool = True

    def of(self, connection: int) -> bytes:
        """Return the payload for the nth connection."""
        return self.payload(connection) if callable(self.payload) else self.payload


class Transport(Protocol):
    """What daemons and coordinator see. All methods may be called from any thread."""

    is_remote: ClassVar[bool]  # Packets take time: who has not got one yet may still get it.

    @property
    def connections(self) -> int:
        """How often a connection was made: 1 after the first, more after each reconnect."""

    @property
    def sent_bytes(self) -> int:
        """Application bytes published so far."""

    @property
    def received_bytes(self) -> int:
        """Application bytes that arrived so far, including those not yet fetched with `receive`."""

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand over a packet; may block while too much is under way.

        An empty retained payload deletes what was retained on the topic.

        Raises:
            TransportError: closed, or nothing could be sent for too long.
        """

    def subscribe(self, topic_filter: str) -> None:
        """Receive what matches; `+` stands for one level, a final `#` for all that follow."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Receive it no more."""

    def receive(self, timeout_s: float) -> Packet | None:
        """Return the next packet, or None when there is none in time.

        Raises:
            TransportError: closed, before or meanwhile: who waits in a loop would never wait again.
        """

    def close(self) -> None:
        """Say farewell: the will is not published. May be called twice."""


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter selects a topic, by the rules of MQTT 3.1.1, section 4.7."""
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False  # The broker's own topics are never meant by a leading wildcard.
    filter_levels, levels = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(filter_levels):
        if level == "#":
            return True  # Also for the parent level: a/# selects a.
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(filter_levels) == len(levels)


class LoopbackHub:
    """A broker in memory, for tests and simulations: one lock, no thread, no clock of its own."""

    def __init__(
        self, max_queued_packets: int = MAX_QUEUED_PACKETS, max_queued_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        """Start empty. The limits are those of each client's queue."""
        self.max_queued_packets = max_queued_packets
        self.max_queued_bytes = max_queued_bytes
        self._lock = threading.Lock()
        self._clients: dict[str, Loopback] = {}
        self._retained: dict[str, Packet] = {}

    def connect(self, client_id: str, will: Will | None = None) -> Loopback:
        """Connect a client. As at a broker, an older connection of the same id is cut off."""
        with self._lock:
            older = self._clients.get(client_id)
        if older is not None:
            older.kill()
        with self._lock:
            self._clients[client_id] = client = Loopback(self, client_id, will)
        return client

    def restart(self) -> None:
        """Lose what a restarted broker loses: retained and undelivered packets. Clients reconnect."""
        with self._lock:
            self._retained.clear()
            for client in self._clients.values():
                client._reconnect()

    def _publish(self, packet: Packet, retain: bool) -> None:
        with self._lock:
            if retain and packet.payload:
                self._retained[packet.topic] = packet
            elif retain:
                self._retained.pop(packet.topic, None)
            for client in self._clients.values():
                if any(matches(one, packet.topic) for one in client._filters):
                    client._deliver(packet)

    def _subscribe(self, client: Loopback, topic_filter: str) -> None:
        with self._lock:
            client._filters.add(topic_filter)
            for packet in self._retained.values():
                if matches(topic_filter, packet.topic):
                    client._deliver(packet)

    def _unsubscribe(self, client: Loopback, topic_filter: str) -> None:
        with self._lock:
            client._filters.discard(topic_filter)

    def _remove(self, client: Loopback) -> None:
        with self._lock:
            if self._clients.get(client.client_id) is client:
                del self._clients[client.client_id]


class Loopback:
    """One client's end of a hub."""

    is_remote: ClassVar[bool] = False

    def __init__(self, hub: LoopbackHub, client_id: str, will: Will | None) -> None:
        """Use `LoopbackHub.connect`."""
        self.client_id = client_id
        self._hub = hub
        self._will = will
        self._will_payload = will.of(1) if will else b""
        self._filters: set[str] = set()
        self._queue: deque[Packet] = deque()
        self._queued_bytes = 0
        self._arrival = threading.Condition()
        self._is_closed = False
        self._connections = 1
        self._sent_bytes = 0
        self._received_bytes = 0

    @property
    def connections(self) -> int:
        """1, and one more for each restart of the hub."""
        return self._connections

    @property
    def sent_bytes(self) -> int:
        """Application bytes published so far."""
        return self._sent_bytes

    @property
    def received_bytes(self) -> int:
        """Application bytes that arrived so far."""
        return self._received_bytes

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Deliver at once to all that match, the publisher included.

        Raises:
            TransportError: closed, or the queue of a receiver is full. A broker would drop packets of
                that receiver; here the publisher learns of it, since dropping hides a bug.
        """
        self._check_open()
        packet = Packet(topic, bytes(payload))
        with self._arrival:
            self._sent_bytes += packet.num_bytes
        self._hub._publish(packet, retain)

    def subscribe(self, topic_filter: str) -> None:
        """Receive what matches, beginning with what is retained."""
        self._check_open()
        self._hub._subscribe(self, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """Receive it no more; what is queued stays."""
        self._check_open()
        self._hub._unsubscribe(self, topic_filter)

    def receive(self, timeout_s: float) -> Packet | None:
        """Return the next packet, or None when there is none in time.

        Raises:
            TransportError: closed, before or meanwhile.
        """
        with self._arrival:
            self._arrival.wait_for(lambda: bool(self._queue) or self._is_closed, timeout_s)
            self._check_open()
            if not self._queue:
                return None
            packet = self._queue.popleft()
            self._queued_bytes -= packet.num_bytes
            return packet

    def close(self) -> None:
        """Leave with a farewell: no will. What was not received is lost."""
        self._hub._remove(self)
        with self._arrival:
            self._is_closed = True
            self._queue.clear()
            self._arrival.notify_all()

    def kill(self) -> None:
        """Vanish as if the power had failed: the hub publishes the will."""
        if self._is_closed:
            return
        self.close()
        if self._will is not None:
            self._hub._publish(Packet(self._will.topic, self._will_payload), self._will.retain)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransportError(f"the connection of client {self.client_id!r} is closed")

    def _deliver(self, packet: Packet) -> None:
        with self._arrival:
            is_full = (
                len(self._queue) >= self._hub.max_queued_packets
                or self._queued_bytes + packet.num_bytes > self._hub.max_queued_bytes
            )
            if is_full:
                raise TransportError(
                    f"the queue of client {self.client_id!r} is full: {len(self._queue)} packets, "
                    f"{self._queued_bytes} bytes; it has stopped receiving (topic {packet.topic!r})"
                )
            self._queue.append(packet)
            self._queued_bytes += packet.num_bytes
            self._received_bytes += packet.num_bytes
            self._arrival.notify()

    def _reconnect(self) -> None:
        with self._arrival:
            self._queue.clear()
            self._queued_bytes = 0
            self._connections += 1
            self._will_payload = self._will.of(self._connections) if self._will else b""
