"""Transport over MQTT 3.1.1: the only file that imports paho.

paho's own thread reads and writes the socket and reconnects; our code is never called from it, but
fetches packets from a queue. Sessions are clean: a broker that kept packets for a client that is away
would flood it with chunks of a round long over. So after each reconnect the filters are subscribed
again, `connections` goes up, and those above ask again for what they still need.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import threading
from collections import deque
from typing import Any, ClassVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from protocol.broker_url import parse
from protocol.errors import TransportError
from protocol.in_flight import MAX_IN_FLIGHT_PACKETS, InFlight
from protocol.tls import Tls, explain
from protocol.topics import QOS
from protocol.transport import MAX_QUEUED_BYTES, MAX_QUEUED_PACKETS, Packet, Will

# Twice a chunk. Whoever sends more is not one of us; paho has read it by then, but nobody keeps it.
MAX_PAYLOAD_BYTES = 256 * 1024 + 1024

# Full receive queue: hold back the broker for so long, but less than the keep-alive, then drop.
RECEIVE_QUEUE_WAIT_S = 5.0
RECONNECT_S_MIN, RECONNECT_S_MAX = 0.5, 15.0
SUBSCRIBE_S = 10.0  # For the broker's answer.
ENDING_S = 0.1
CLOSE_S = 2.0  # For the last acknowledgements.

_log = logging.getLogger(__name__)


def connect(
    url: str,
    client_id: str,
    username: str,
    password: str,
    will: Will | None = None,
    *,
    keepalive_s: int = 15,
    timeout_s: float = 10.0,
    publish_timeout_s: float = 60.0,
    tls: Tls = Tls(),  # noqa: B008  It is frozen.
) -> MqttTransport:
    """Connect to `mqtt://host:port` or `mqtts://host:port` and return when the broker has accepted.

    One attempt; later losses are repaired without end. The broker publishes the will after 1.5
    keep-alives of silence. `publish_timeout_s` is how long `publish` waits without any progress.

    Raises:
        ConfigError: the URL is not of this form, or a file of `tls` cannot be used.
        TransportError: unreachable, no answer in time, or refused; the text says what to check.
    """
    transport = MqttTransport(url, client_id, username, password, will, publish_timeout_s, tls)
    transport._open(keepalive_s, timeout_s)
    return transport


class MqttTransport:
    """One client's connection; see `protocol.transport.Transport` for what each method promises."""

    is_remote: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        client_id: str,
        username: str,
        password: str,
        will: Will | None,
        publish_timeout_s: float,
        tls: Tls,
    ) -> None:
        """Use `connect`."""
        scheme, self._host, self._port = parse(url)
        self._url, self._username, self._tls = url, username, tls
        self._publish_timeout_s = publish_timeout_s
        # One condition for all that follows; nothing is sent while it is held.
        self._state = threading.Condition()
        self._filters: dict[str, None] = {}  # A set that keeps its order.
        self._subscribed: dict[int, ReasonCode] = {}  # Message id -> the broker's answer.
        self._resubscribed: dict[int, str] = {}  # Message id -> filter; only paho's thread uses it.
        self._queue: deque[Packet] = deque()
        self._queued_bytes = 0
        self._in_flight = InFlight(self._state)
        self._refusal: ReasonCode | None = None
        self._num_failures = 0  # Since the last connect.
        self._is_closed = False
        self._connections = 0
        self._sent_bytes = 0
        self._received_bytes = 0
        self._num_dropped = 0

        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, clean_session=True, protocol=paho.MQTTv311
        )
        client.username_pw_set(username, password)
        if scheme == "mqtts":
            client.tls_set_context(tls.context())
        client.on_pre_connect = lambda *_: self._prepare(will)
        client.max_inflight_messages_set(MAX_IN_FLIGHT_PACKETS)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        self._back_off()

    # What Transport promises

    @property
    def connections(self) -> int:
        """How often the broker accepted us."""
        return self._connections

    @property
    def sent_bytes(self) -> int:
        """Application bytes handed to `publish`; repetitions by MQTT are not counted."""
        return self._sent_bytes

    @property
    def received_bytes(self) -> int:
        """Application bytes that arrived, including what was dropped."""
        return self._received_bytes

    @property
    def num_dropped(self) -> int:
        """Packets dropped: too large, a topic that is not UTF-8, or nobody fetched them."""
        return self._num_dropped

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand over a packet; waits while too much is under way, also while there is no connection.

        Raises:
            TransportError: closed, or nothing was acknowledged for `publish_timeout_s`.
            ValueError: the payload is larger than any receiver takes, or the topic has wildcards.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are received")
        packet = Packet(topic, payload)
        in_flight = self._in_flight
        if not in_flight.reserve(packet.num_bytes, self._publish_timeout_s, lambda: self._is_closed):
            self._check_open()
            raise TransportError(
                f"the broker at {self._url} acknowledged nothing for {self._publish_timeout_s} s; "
                f"{in_flight.num_packets} packets, {in_flight.num_bytes} bytes are under way"
            )
        try:
            message_id = self._client.publish(topic, payload, QOS, retain).mid
        except ValueError:
            in_flight.release(packet.num_bytes)
            raise
        with self._state:
            self._sent_bytes += packet.num_bytes
        in_flight.sent(message_id, packet.num_bytes)

    def subscribe(self, topic_filter: str) -> None:
        """Receive what matches; returns when the broker has agreed, or at once without a connection.

        Raises:
            TransportError: closed, or the broker does not allow it, or gives no answer.
        """
        with self._state:
            self._check_open()
            self._filters[topic_filter] = None
            connections = self._connections
        result, message_id = self._client.subscribe(topic_filter, QOS)
        if result != paho.MQTT_ERR_SUCCESS or message_id is None:
            return  # Not connected: it is subscribed with all the others when we are.
        with self._state:
            self._state.wait_for(
                lambda: message_id in self._subscribed or connections != self._connections or self._is_closed,
                SUBSCRIBE_S,
            )
            answer = self._subscribed.pop(message_id, None)
            if answer is not None and not answer.is_failure:
                return
            if connections != self._connections or self._is_closed:
                return
            self._filters.pop(topic_filter, None)
        reason = f"user {self._username!r} may not" if answer is not None else "no answer"
        raise TransportError(
            f"the broker at {self._url} did not accept the filter {topic_filter!r}: {reason}"
        )

    def unsubscribe(self, topic_filter: str) -> None:
        """Receive it no more; what is already under way may still arrive."""
        with self._state:
            self._check_open()
            self._filters.pop(topic_filter, None)
        self._client.unsubscribe(topic_filter)

    def receive(self, timeout_s: float) -> Packet | None:
        """Return the next packet, or None when there is none in time.

        Raises:
            TransportError: closed, before or meanwhile.
        """
        with self._state:
            self._state.wait_for(lambda: bool(self._queue) or self._is_closed, timeout_s)
            self._check_open()
            if not self._queue:
                return None
            packet = self._queue.popleft()
            self._queued_bytes -= packet.num_bytes
            self._state.notify_all()
            return packet

    def close(self) -> None:
        """Wait shortly for what is under way, and say farewell."""
        with self._state:
            if self._is_closed:
                return
            self._is_closed = True
            self._state.notify_all()
            if self._client.is_connected():
                self._state.wait_for(lambda: self._in_flight.is_empty, CLOSE_S)
        self._client.disconnect()
        self._end()

    def kill(self) -> None:
        """Cut the connection without a farewell, as a power failure would: the will is published."""
        with self._state:
            self._is_closed = True
            self._state.notify_all()
        connection: Any = self._client.socket()  # paho types it without shutdown.
        if connection is not None:
            # The broker, or paho's thread, may have closed it already.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._end()

    def _end(self) -> None:
        """Wait for paho's thread and close all sockets: not when the garbage collector happens to come by."""
        # paho forgets its thread when that ends, which may be after it has looked and before it joins.
        with contextlib.suppress(AttributeError):
            self._client.loop_stop()
        self._client.reinitialise()

    # Connecting

    def _open(self, keepalive_s: int, timeout_s: float) -> None:
        self._client.connect_timeout = timeout_s
        try:
            self._client.connect(self._host, self._port, keepalive_s)
        except ssl.SSLError as error:
            raise TransportError(explain(error, self._host, self._port, self._tls)) from error
        except OSError as error:
            raise TransportError(
                f"cannot reach the broker at {self._host}, port {self._port}: {error}. Is it running, are address "
                "and port right (8883 with TLS, 1883 without), and does no firewall stand between?"
            ) from error
        self._client.loop_start()
        with self._state:
            self._state.wait_for(
                lambda: self._connections or self._refusal is not None or self._num_failures, timeout_s
            )
            if self._connections:
                return
            problem = self._problem(timeout_s)
        self.kill()
        raise TransportError(problem)

    def _problem(self, timeout_s: float) -> str:
        if self._refusal is not None:
            return (
                f"the broker at {self._url} refused user {self._username!r}: {self._refusal}. "
                "Check the user name, the password and the client id"
            )
        if self._num_failures:
            return (
                f"{self._url} closed the connection without an answer: it is no MQTT broker, or it "
                "expects TLS (mqtts://), or none (mqtt://), or a certificate of this client ([broker] certificate)"
            )
        return (
            f"{self._url} accepted the connection, but gave no answer in {timeout_s} s: is it an MQTT broker?"
        )

    def _prepare(self, will: Will | None) -> None:
        """Leave a will for the connection that is about to be made.

        Raises:
            OSError: closed. A new connection would take the place of whoever has this client id by now.
        """
        if self._is_closed:
            raise ConnectionAbortedError("closed")
        if will is not None:
            self._client.will_set(will.topic, will.of(self._connections + 1), QOS, will.retain)

    def _back_off(self) -> None:
        """Choose the next wait anew: doubling, and by chance, lest a fleet returns all at once."""
        if self._is_closed or not self._connections:
            # About to end: paho's thread looks up only after this wait, and `loop_stop` waits for it.
            self._client.reconnect_delay_set(ENDING_S, ENDING_S)  # type: ignore[arg-type]
            return
        longest_s = min(RECONNECT_S_MAX, 2.0 ** min(self._num_failures, 10))
        wait_s = max(RECONNECT_S_MIN, longest_s * random.uniform(0.5, 1.0))  # noqa: S311  (No secret.)
        self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # It only sleeps.

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransportError(f"the connection to {self._url} is closed")

    # Called by paho's thread. An exception here would end that thread, and the connection with it.

    @staticmethod
    def _on_socket_open(client: Any, userdata: Any, sock: Any) -> None:
        # Small messages go at once. Nagle's algorithm holds them back until the last one is
        # acknowledged, which costs 40 ms for each step of a round.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            _log.warning("Refused by the broker. url=%s user=%s reason=%s", self._url, self._username, reason)
            with self._state:
                self._refusal = reason
                self._state.notify_all()
            return
        self._resubscribed.clear()
        with self._state:
            filters = list(self._filters)
        for topic_filter in filters:
            _, message_id = client.subscribe(topic_filter, QOS)
            if message_id is not None:
                self._resubscribed[message_id] = topic_filter
        with self._state:
            self._num_failures = 0
            self._subscribed.clear()
            self._connections += 1
            self._state.notify_all()
        _log.info("Connected to the broker. url=%s connections=%d", self._url, self._connections)

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        with self._state:
            self._num_failures += 1
            self._state.notify_all()
        self._back_off()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self._is_closed:
            _log.warning("Lost the broker. url=%s reason=%s", self._url, reason)
        self._on_connect_fail(client, userdata)

    def _on_subscribe(
        self, client: Any, userdata: Any, message_id: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        topic_filter = self._resubscribed.pop(message_id, None)
        if topic_filter is None:
            with self._state:
                self._subscribed[message_id] = reasons[0]
                self._state.notify_all()
        elif reasons[0].is_failure:
            _log.warning("Not allowed to subscribe again. url=%s filter=%s", self._url, topic_filter)

    def _on_publish(self, client: Any, userdata: Any, message_id: int, reason: Any, properties: Any) -> None:
        self._in_flight.acknowledged(message_id)

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            packet = Packet(message.topic, bytes(message.payload))
        except UnicodeDecodeError:
            self._drop("a topic that is not UTF-8", len(message.payload))
            return
        if len(packet.payload) > MAX_PAYLOAD_BYTES:
            self._drop("too large", packet.num_bytes)
            return
        with self._state:
            # Not while somebody waits to publish: the acknowledgement comes behind this packet, and who waits
            # for it is who would fetch.
            self._state.wait_for(
                lambda: self._is_closed or self._in_flight.num_waiting or self._can_queue(packet.num_bytes),
                RECEIVE_QUEUE_WAIT_S,
            )
            if self._can_queue(packet.num_bytes):
                self._queue.append(packet)
                self._queued_bytes += packet.num_bytes
                self._received_bytes += packet.num_bytes
                self._state.notify_all()
                return
        self._drop("the receive queue is full: nobody fetches", packet.num_bytes)

    def _can_queue(self, num_bytes: int) -> bool:
        return len(self._queue) < MAX_QUEUED_PACKETS and self._queued_bytes + num_bytes <= MAX_QUEUED_BYTES

    def _drop(self, reason: str, num_bytes: int) -> None:
        with self._state:
            self._num_dropped += 1
            self._received_bytes += num_bytes
        _log.warning("Dropped a packet. url=%s bytes=%d reason=%s", self._url, num_bytes, reason)
