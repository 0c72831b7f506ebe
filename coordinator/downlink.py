"""Bodies on their way down: one publication for a whole cohort; what only a few have missed goes to them alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.blob_store import RESEND_S, BlobStore, Publisher
from protocol.blobs import STALL_S, num_chunks
from protocol.messages import BlobRef, Want
from protocol.topics import BLOB_DOWN, REPEAT, Topics
from protocol.transport import Transport

# What the coordinator offers at once: an artifact's files, and a round's bodies.
STORE_BYTES = 2 << 30

# A cohort asks within milliseconds of each other. Waiting this long before the first publication
# lets all of them subscribe, so that nobody misses it and waits for the repetition.
GATHER_S = 0.05
# After a broker's restart clients come back within a second of each other. Whoever is back first would have
# chunks published that the others miss, and that all receive again.
RETURN_S = 1.5
CROSSING_S = 10.0  # A Want that is on its way for longer did not cross its chunk: the chunk was lost.
# What was published so recently is still on its way, however often it is asked for: chunks come in the order in which
# the cohort asked, so that a client may take one for lost that only comes later than it would by its own Wants.
GRACE_S = STALL_S
FEW = 8  # Clients that a repetition is sent to one by one. For more of them one publication costs less.
TRIES = 2  # So often; then with the others.


@dataclass
class _Listener:
    """A client that has asked for a body."""

    since_s: float  # From then on it hears what is published of it.
    excused: set[int] = field(default_factory=set)  # Chunks of which one Want was taken for a crossing.
    repeated: Counter[int] = field(default_factory=Counter)  # How often a chunk was sent to it alone,
    repeated_s: dict[int, float] = field(default_factory=dict)  # and when last.


@dataclass
class _Offer:
    """A body that somebody has asked for."""

    num_chunks: int
    listeners: dict[str, _Listener] = field(default_factory=dict)  # By client.
    published_s: dict[int, float] = field(default_factory=dict)  # Chunk -> when last to all.
    # Chunk -> who waits for it, and whether it may come on a topic of the client's own; and since when.
    waiting: dict[int, dict[str, bool]] = field(default_factory=dict)
    waiting_since_s: dict[int, float] = field(default_factory=dict)

    def forget_waiting(self, chunk: int) -> None:
        del self.waiting[chunk], self.waiting_since_s[chunk]


class Downlink:
    """Publishes chunks that clients ask for."""

    def __init__(self, transport: Transport, topics: Topics) -> None:
        """Nothing is on offer."""
        self._transport, self._topics = transport, topics
        self._store = BlobStore(STORE_BYTES)
        # Where packets take no time, who asks for what was just published has missed it.
        self._publisher = Publisher(self._store, RESEND_S if transport.is_remote else GATHER_S)
        self._offers: dict[str, _Offer] = {}  # By digest.
        self._connections, self._quiet_until_s = transport.connections, -math.inf

    def offer(self, data: bytes) -> BlobRef:
        """Put a body on offer."""
        return self._store.put(data)

    def withdraw(self, digests: Iterable[str]) -> None:
        """Take bodies of a past round off the shelf."""
        for digest in digests:
            self._store.remove(digest)
            self._offers.pop(digest, None)

    def want(self, client_id: str, message: Want, now_s: float) -> None:
        """Note what a client needs; chunks that the body does not have are passed over.

        Left out: what was published since it listens, and is on its way to it, because others of the cohort asked
        a moment earlier. What was lost it asks for again.
        """
        body = self._store.get(message.digest)
        if body is None:
            return
        offer = self._offers.setdefault(
            message.digest, _Offer(num_chunks(len(body), self._store.chunk_bytes))
        )
        listener = offer.listeners.setdefault(client_id, _Listener(now_s))
        heard_since_s = max(listener.since_s, now_s - CROSSING_S)
        for chunk in message.chunks:
            if chunk >= offer.num_chunks:
                continue
            sent_s = max(offer.published_s.get(chunk, -math.inf), listener.repeated_s.get(chunk, -math.inf))
            is_recent = chunk not in listener.excused or now_s - sent_s < GRACE_S
            if sent_s > heard_since_s and is_recent:
                listener.excused.add(chunk)
            else:
                offer.waiting_since_s.setdefault(chunk, now_s)
                # A broker whose access rules are older than that topic drops what is sent on it.
                alone = message.hears_repeats and listener.repeated[chunk] < TRIES
                offer.waiting.setdefault(chunk, {})[client_id] = alone

    def returned(self, client_id: str) -> None:
        """A client has a new connection: what was published before may never have reached it."""
        for offer in self._offers.values():
            offer.listeners.pop(client_id, None)

    def tick(self, now_s: float) -> None:
        """Publish what is due. A chunk that was published just now stays wanted until it may be repeated."""
        if self._transport.connections != self._connections:
            self._connections = self._transport.connections
            self._quiet_until_s = now_s + (RETURN_S if self._transport.is_remote else 0.0)
            for offer in self._offers.values():
                # Who still needs something asks again: their connection was a new one, too.
                offer.listeners.clear()
                offer.waiting.clear()
                offer.waiting_since_s.clear()
        if now_s < self._quiet_until_s:
            return
        for digest, offer in self._offers.items():
            gathered = [one for one, since_s in offer.waiting_since_s.items() if now_s - since_s >= GATHER_S]
            for chunk in self._publisher.due(digest, gathered, now_s):
                payload = self._store.chunk(digest, chunk)
                if payload is not None:
                    self._send(digest, chunk, payload, now_s)
                offer.forget_waiting(chunk)

    def _send(self, digest: str, chunk: int, payload: bytes, now_s: float) -> None:
        """To all for the first time, and when many have missed it; else to those who have."""
        offer = self._offers[digest]
        waiting = offer.waiting[chunk]
        if chunk in offer.published_s and len(waiting) <= FEW and all(waiting.values()):
            for client_id in waiting:
                listener = offer.listeners.setdefault(client_id, _Listener(now_s))
                listener.repeated[chunk] += 1
                listener.repeated_s[chunk] = now_s
                self._transport.publish(self._topics.of(REPEAT, client_id, digest), payload)
        else:
            offer.published_s[chunk] = now_s
            self._transport.publish(self._topics.of(BLOB_DOWN, digest=digest), payload)
