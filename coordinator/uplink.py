"""Bodies on their way up: one assembly for each client, a few at a time."""

from __future__ import annotations

import logging
from collections.abc import Collection

from protocol.blobs import Assembly
from protocol.errors import DigestMismatch, MalformedMessage
from protocol.messages import BlobRef, Want, encode
from protocol.topics import FETCH, Topics
from protocol.transport import Transport

log = logging.getLogger(__name__)

# Bodies that arrive at a time. The others wait their turn, so that a cohort of any size takes the memory of a few;
# on slow links a few at a time would take for ever, hence bytes and not bodies.
OPEN_BYTES = 16 << 20
OPEN_BODIES = 4


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
