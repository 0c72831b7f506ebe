"""The signed envelope: which key says a message, where, in which session, and for the how-manieth time.

    Sealer.seal(topic, message) --> bytes --> decode --> Signed --> opened(signed, topic, key) --> message

The signature covers the topic, so that what was said to one device cannot be said to another, and
nothing of a device's state can be passed off as an update. Run and round stand in the message itself.

A message is fresh if its session is the sender's newest and its counter was not seen before. Both sides
count their sessions durably, once for each start, and need no durable write for each message. A device
also refuses what was sealed for an earlier session of its own, so that it must remember nothing of the
coordinator's counters over a restart.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from dataclasses import dataclass

import msgspec

from protocol.errors import NotAdmitted, Replayed
from protocol.identity import Key, is_signed_by
from protocol.messages import AnyMessage, Message, Signed, decode, encode

_CONTEXT = b"sparsefleet signed message 1\0"  # No signature of ours for another purpose begins like this.
_numbers = struct.Struct(">HHQQQ")
WINDOW = 32  # Counters behind the highest that may still come: what was overtaken on its way.


class Sealer:
    """Signs what one side says in one session. May be called from any thread."""

    def __init__(self, key: Key, session: int) -> None:
        """`session` must never have been used with this key."""
        self.key, self.session = key, session
        self._boot = secrets.token_bytes(8)
        self._counters = itertools.count(1)  # next() of it is atomic.

    def seal(self, topic: str, message: Message, audience: int = 0) -> bytes:
        """Return the envelope, encoded."""
        payload, counter = encode(message), next(self._counters)
        signed = Signed(self.session, counter, audience, payload, bytes(64), self._boot)
        return encode(msgspec.structs.replace(signed, signature=self.key.sign(covered(signed, topic))))


def opened(signed: Signed, topic: str, public: bytes) -> AnyMessage:
    """Return the message, if this key sealed it for this topic.

    Raises:
        NotAdmitted: it did not.
        ProtocolError: it did, but what is inside is no message.
    """
    if not is_signed_by(public, signed.signature, covered(signed, topic)):
        raise NotAdmitted("the signature is not that of the key which is known for this sender")
    return decode(signed.payload)


def covered(signed: Signed, topic: str) -> bytes:
    """Return the bytes that its signature is of."""
    name, boot = topic.encode(), signed.boot
    numbers = _numbers.pack(len(name), len(boot), signed.session, signed.counter, signed.audience)
    return _CONTEXT + numbers + name + boot + signed.payload


@dataclass(frozen=True)
class Window:
    """Which counters of a session were seen: the sliding window of RFC 4303, section 3.4.3."""

    top: int = 0  # The highest.
    seen: int = 0  # Bit i: whether top - i was seen.

    def after(self, counter: int) -> Window:
        """Return the window with this counter seen.

        Raises:
            Replayed: it was seen, or is too old to tell.
        """
        ahead = counter - self.top
        if ahead > 0:
            seen = self.seen << ahead if ahead < WINDOW else 0
            return Window(counter, (seen | 1) & (2**WINDOW - 1))
        if -ahead >= WINDOW or self.seen >> -ahead & 1:
            raise Replayed(f"counter {counter} was used; the highest is {self.top}")
        return Window(self.top, self.seen | 1 << -ahead)
