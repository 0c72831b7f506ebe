"""Bodies on their way: one publication down for a whole cohort, one assembly up for each client."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from protocol.blobs import RESEND_S, Assembly, BlobStore, Publisher
from protocol.errors import DigestMismatch, MalformedMessage
from protocol.messages import BlobRef, Want, encode
from protocol.topics import BLOB_DOWN, FETCH, Topics
from protocol.transport import Transport

log = logging.getLogger(__name__)

# What the coordinator offers at once: an artifact's files, and a round's bodies.
STORE_BYTES = 2 << 30

# A cohort asks within milliseconds of each other. Waiting this long before the first publication
# lets all of them subscribe, so that nobody misses it and waits for the repetition.
GATHER_S = 0.05
# After a broker's restart clients come back within a second of each other. Whoever is back first would have
# chunks published that the others miss, and that all receive again.
RETURN_S = 1.5
CROSSING_S = 10.0  # A Want that is on its way for longer did not cross its chunk: the chunk was lost.


@dataclass
class _Listener:
    """A client that has asked for a digest."""

    since_s: float  # From then on it hears what is published of it.
    excused: set[int] = field(default_factory=set)  # Chunks of which one Want was taken for a crossing.


# Bodies that arrive at a time. The others wait their turn, so that a cohort of any size takes the memory of a few;
# on slow links a few at a time would take for ever, hence bytes and not bodies.
OPEN_BYTES = 16 << 20
OPEN_BODIES = 4


class Downlink:
    """Publishes chunks that clients ask for."""

    def __init__(self, transport: Transport, topics: Topics) -> None:
        """Nothing is on offer."""
        self._transport, self._topics = transport, topics
        self._store = BlobStore(STORE_BYTES)
        # Where packets take no time, who asks for what was just published has missed it.
        self._publisher = Publisher(self._store, RESEND_S if transport.is_remote else GATHER_S)
        self._pending: dict[str, dict[int, float]] = {}  # digest -> chunk -> when it was first wanted
        self._listeners: dict[str, dict[str, _Listener]] = {}  # digest -> client
        self._published_s: dict[str, dict[int, float]] = {}  # digest -> chunk -> when last
        self._connections, self._quiet_until_s = transport.connections, -math.inf

    def offer(self, data: bytes) -> BlobRef:
        """Put a body on offer."""
        return self._store.put(data)

    def withdraw(self, digests: Iterable[str]) -> None:
        """Take bodies of a past round off the shelf."""
        for digest in digests:
            self._store.remove(digest)
            self._pending.pop(digest, None)
            self._listeners.pop(digest, None)
            self._published_s.pop(digest, None)

    def want(self, client_id: str, message: Want, now_s: float) -> None:
        """Note what a client needs.

        Left out, once: what was published since it listens, and is on its way to it. The others of the cohort
        asked a moment earlier; to publish it again would send it to all of them. What is lost it asks for again.
        """
        digest = message.digest
        if digest not in self._store:
            return
        listener = self._listeners.setdefault(digest, {}).setdefault(client_id, _Listener(now_s))
        published_s = self._published_s.get(digest, {})
        chunks = self._pending.setdefault(digest, {})
        for chunk in message.chunks:
            heard_since_s = max(listener.since_s, now_s - CROSSING_S)
            if published_s.get(chunk, -math.inf) > heard_since_s and chunk not in listener.excused:
                listener.excused.add(chunk)
            else:
                chunks.setdefault(chunk, now_s)

    def returned(self, client_id: str) -> None:
        """A client has a new connection: what was published before may never have reached it."""
        for listeners in self._listeners.values():
            listeners.pop(client_id, None)

    def tick(self, now_s: float) -> None:
        """Publish what is due. A chunk that was published just now stays pending until it may be repeated."""
        if self._transport.connections != self._connections:
            self._connections = self._transport.connections
            self._quiet_until_s = now_s + (RETURN_S if self._transport.is_remote else 0.0)
            self._listeners.clear()
            self._pending.clear()  # Who still needs it asks again: their connection was a new one, too.
        if now_s < self._quiet_until_s:
            return
        for digest, chunks in list(self._pending.items()):
            gathered = [chunk for chunk, since_s in chunks.items() if now_s - since_s >= GATHER_S]
            for index in self._publisher.due(digest, gathered, now_s):
                chunk = self._store.chunk(digest, index)
                if chunk is not None:
                    self._published_s.setdefault(digest, {})[index] = now_s
                    self._transport.publish(self._topics.of(BLOB_DOWN, digest=digest), chunk)
                del chunks[index]
            if not chunks:
                del self._pending[digest]


class Uplink:
    """Fetches the bodies of updates."""

    def __init__(self, transport: Transport, topics: Topics) -> None:
        """Nothing is on its way."""
        self._transport, self._topics = transport, topics
        self._assemblies: dict[str, Assembly] = {}
        self._connections = transport.connections

    def begin(self, client_id: str, ref: BlobRef, max_bytes: int) -> None:
        """Fetch a client's body; what is there of the same one is not fetched again, another is forgotten.

        Raises:
            LimitExceeded: it is announced larger than `max_bytes`.
            MalformedMessage: it is announced as empty.
        """
        if ref.size == 0:
            raise MalformedMessage("an empty body is announced: no chunk would ever complete it")
        begun = self._assemblies.get(client_id)
        if begun is not None and begun.ref == ref:
            begun.ask_again()
        else:
            self._assemblies[client_id] = Assembly(ref, max_bytes)

    def chunk(self, client_id: str, digest: str, payload: bytes) -> bytes | None:
        """Take in a chunk. Return the body when it is complete.

        What turns out not to be the announced body is fetched anew, for as long as the round is open: chunks
        are not signed, and one that somebody else put among them tells nothing about the client.
        """
        assembly = self._assemblies.get(client_id)
        if assembly is None or assembly.ref.digest != digest:
            return None
        assembly.add(payload)
        if not assembly.is_complete:
            return None
        try:
            body = bytes(assembly.bytes())
        except DigestMismatch as error:
            log.warning("fetched anew client=%s reason=%s", client_id, error)
            return None
        del self._assemblies[client_id]
        return body

    def forget(self, client_id: str) -> None:
        """Stop fetching from a client."""
        self._assemblies.pop(client_id, None)

    def forget_others(self, client_ids: Collection[str]) -> None:
        """Stop fetching from all but these."""
        self._assemblies = {client: one for client, one in self._assemblies.items() if client in client_ids}

    def tick(self, now_s: float) -> None:
        """Ask for what is missing, of those first that came first.

        After a reconnect all of it: what was on its way is lost.
        """
        if self._transport.connections != self._connections:
            self._connections = self._transport.connections
            for assembly in self._assemblies.values():
                assembly.ask_again()
        open_bytes = 0
        for place, (client_id, assembly) in enumerate(self._assemblies.items()):
            open_bytes += assembly.ref.size
            if place >= OPEN_BODIES and open_bytes > OPEN_BYTES:
                break
            wanted = assembly.wanted(now_s)
            if wanted:
                self._transport.publish(
                    self._topics.of(FETCH, client_id), encode(Want(assembly.ref.digest, wanted))
                )
