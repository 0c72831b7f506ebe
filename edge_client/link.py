"""The client's side of the wire: announces itself, fetches blobs, offers bodies, takes orders.

All packets pass through `_pump`, whatever the client waits for, so that a Want for an earlier body
is answered also while the next one is being fetched.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from edge_client import notify
from edge_client.trust import Trust
from protocol.blob_store import BlobStore
from protocol.blobs import UPLOAD_CHUNK_BYTES, Assembly
from protocol.errors import ProtocolError, TransportError
from protocol.messages import (
    BlobRef,
    Dismissal,
    End,
    Hello,
    Join,
    Leave,
    Message,
    Receipt,
    Task,
    Update,
    Want,
    decode,
    encode,
)
from protocol.topics import BLOB_DOWN, BLOB_UP, FETCH, HELLO, REPEAT, STATE, TASK, UPDATE, WANT, Topics
from protocol.transport import Packet, Transport

log = logging.getLogger(__name__)

# A coordinator that sends nothing for so long is gone; the client goes back to waiting for tasks.
PATIENCE_S = 120.0
# How long `receive` blocks: bounds how late a stalled transfer is noticed.
TICK_S = 0.25
# Silence after which an update is announced again.
REPEAT_S = 15.0


class Superseded(Exception):
    """Another order came in while the client was waiting for this one's blobs."""


class Link:
    """One client's conversation with its coordinator."""

    def __init__(self, transport: Transport, topics: Topics, client_id: str, trust: Trust) -> None:
        """Subscribe to what the coordinator may say to this client."""
        self.transport, self._trust = transport, trust
        self._topics, self._client_id = topics, client_id
        self._orders: deque[Task | End] = deque()
        self._receipts: dict[str, Receipt] = {}
        self._offered = BlobStore(0, chunk_bytes=UPLOAD_CHUNK_BYTES)
        self._assembly: Assembly | None = None
        self._join: Join | None = None
        self._current: Task | None = None
        self._announced = 0
        self._asked_s = 0.0  # When the coordinator last asked for chunks.
        for topic_filter in topics.client_filters(client_id):
            transport.subscribe(topic_filter)
        self._hears_repeats = self._subscribe_to_repeats()

    def _subscribe_to_repeats(self) -> bool:
        """Return whether the broker lets it; an older coordinator's does not, and publishes them to all."""
        try:
            self.transport.subscribe(self._topics.repeats(self._client_id))
        except TransportError as error:
            log.info("chunks come with those of the others reason=%s", error)
            return False
        return True

    def announce(self, join: Join) -> None:
        """Say who is here: now, after each reconnect, and to each coordinator that starts."""
        self._announced = self.transport.connections
        self._join = msgspec.structs.replace(join, public_key=self._trust.public, connection=self._announced)
        self._publish(STATE, self._join, retain=True)

    def leave(self) -> None:
        """Say farewell."""
        leave = Leave(self._client_id, self._trust.session, self.transport.connections)
        self._publish(STATE, leave, retain=True)

    def say(self, message: Message) -> None:
        """Send a small message about a task."""
        self._publish(UPDATE, message)

    def _publish(self, kind: str, message: Message, retain: bool = False) -> None:
        topic = self._topics.of(kind, self._client_id)
        self.transport.publish(topic, self._trust.seal(topic, message), retain)

    def next_order(self, timeout_s: float) -> Task | End | None:
        """Return the newest order; an older task that was not begun is obsolete."""
        self._current = None
        self._pump(lambda: bool(self._orders), timeout_s)
        order = self._orders.pop() if self._orders else None
        self._orders.clear()
        self._current = order if isinstance(order, Task) else None
        return order

    def fetch(self, ref: BlobRef, max_bytes: int) -> bytes:
        """Return a blob's bytes, verified.

        Raises:
            LimitExceeded: it is announced larger than `max_bytes`.
            Superseded: a new order came.
            TransportError: nothing came for two minutes.
        """
        topic = self._topics.of(BLOB_DOWN, digest=ref.digest)
        assembly = self._assembly = Assembly(ref, max_bytes)
        self.transport.subscribe(topic)
        try:
            progress_s, arrived, connections = time.monotonic(), (-1, 0), self.transport.connections
            while not assembly.is_complete:
                now_s = time.monotonic()
                if self.transport.connections != connections:
                    connections = self.transport.connections
                    assembly.ask_again()
                # A slow link may carry what was asked for too early for minutes: it is alive.
                if (len(assembly.missing), assembly.num_duplicates) != arrived:
                    progress_s, arrived = now_s, (len(assembly.missing), assembly.num_duplicates)
                if now_s - progress_s > PATIENCE_S:
                    raise TransportError(f"blob {ref.digest[:12]}: nothing came for {PATIENCE_S:.0f} s")
                wanted = assembly.wanted(now_s)
                if wanted:
                    want = encode(Want(ref.digest, wanted, self._hears_repeats))
                    self.transport.publish(self._topics.of(WANT, self._client_id), want)
                self._receive(TICK_S)
                if self._orders:
                    raise Superseded
            return bytes(assembly.bytes())
        finally:
            self._assembly = None
            self.transport.unsubscribe(topic)

    def offer(self, body: bytes) -> BlobRef:
        """Keep a body for the coordinator to fetch. Only the latest is kept."""
        self._offered = BlobStore(len(body), chunk_bytes=UPLOAD_CHUNK_BYTES)
        return self._offered.put(body)

    def deliver(self, update: Update) -> Receipt:
        """Announce an update and serve its chunks until the coordinator's word on it.

        The announcement is repeated after a reconnect and now and then: a broker that was killed
        loses what it had acknowledged.

        Raises:
            Superseded: a new order came; the coordinator no longer cares.
            TransportError: nothing was asked for two minutes, however long the body takes.
        """
        digest, self._asked_s = update.body.digest, time.monotonic()
        while time.monotonic() - self._asked_s < PATIENCE_S:
            self.say(update)
            said_at = self.transport.connections
            self._pump(lambda at=said_at: self._is_answered(digest, at), REPEAT_S)  # type: ignore[misc]
            if digest in self._receipts:
                return self._receipts.pop(digest)
            if self._orders:
                raise Superseded
        raise TransportError(f"no receipt came for {PATIENCE_S:.0f} s")

    def _is_answered(self, digest: str, said_at: int) -> bool:
        """Whether waiting for a receipt makes no sense any more."""
        return digest in self._receipts or bool(self._orders) or self.transport.connections != said_at

    def _pump(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Handle packets until something holds; the time counts from the last packet."""
        quiet_since_s = time.monotonic()
        while not is_done() and time.monotonic() - quiet_since_s < timeout_s:
            if self._receive(min(TICK_S, timeout_s)):
                quiet_since_s = time.monotonic()

    def _receive(self, timeout_s: float) -> bool:
        notify.beat()
        packet = self.transport.receive(timeout_s)
        if self._join is not None and self.transport.connections != self._announced:
            self.announce(self._join)
        if packet is None:
            return False
        try:
            self._handle(packet)
        except ProtocolError as error:
            log.warning("a packet was dropped topic=%s reason=%s", packet.topic, error)
        return True

    def _handle(self, packet: Packet) -> None:
        address = self._topics.parse(packet.topic)
        if address is None:
            return
        if address.kind in (BLOB_DOWN, REPEAT):
            if self._assembly is not None and address.digest == self._assembly.ref.digest:
                self._assembly.add(packet.payload)
        elif address.kind == TASK:
            message = self._trust.open(packet.topic, packet.payload)
            if isinstance(message, Task | End):
                if (
                    message != self._current
                ):  # A coordinator that reconnects asks again for what is under way.
                    self._orders.append(message)
            elif isinstance(message, Receipt):
                self._receipts[message.digest] = message
            elif isinstance(message, Dismissal):
                log.error("the coordinator does not let this device in reason=%s", message.reason)
                notify.status(f"not let in: {message.reason}")
        elif address.kind == FETCH:
            message = decode(packet.payload)
            if isinstance(message, Want):
                self._serve(message)
        elif address.kind == HELLO:
            self._meet(decode(packet.payload))

    def _meet(self, hello: Message) -> None:
        """A coordinator that has just started may find no retained state: the broker was restarted too."""
        if not isinstance(hello, Hello) or not hello.online:
            return
        if self._trust.hear(hello) and self._join is not None:
            self.announce(self._join)

    def _serve(self, want: Want) -> None:
        """Publish the chunks that the coordinator asks for."""
        self._asked_s = time.monotonic()
        topic = self._topics.of(BLOB_UP, self._client_id, want.digest)
        for index in want.chunks:
            chunk = self._offered.chunk(want.digest, index)
            if chunk is not None:
                self.transport.publish(topic, chunk)
