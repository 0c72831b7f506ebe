"""MQTT 3.1.1 packets as frames: where one ends, which are PUBLISH, and what to change in them.

Only what a fault needs to know; topics and fields of other packets pass unread.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, replace

PUBLISH, PUBACK = 3, 4
_DUP = 0x08


class Unframed(Exception):
    """The bytes are no MQTT packet, or one larger than allowed."""


@dataclass(frozen=True)
class Packet:
    """One control packet, section 2 of the standard."""

    kind: int  # 1 to 15
    flags: int  # Four bits
    body: bytes  # Variable header and payload

    def encode(self) -> bytes:
        """Return the packet as it travels."""
        length, encoded = len(self.body), bytearray([self.kind << 4 | self.flags])
        while True:
            length, digit = divmod(length, 128)
            encoded.append(digit | (0x80 if length else 0))
            if not length:
                return bytes(encoded) + self.body

    @property
    def qos(self) -> int:
        """Of a PUBLISH."""
        return self.flags >> 1 & 3

    @property
    def payload_start(self) -> int:
        """Where the payload of a PUBLISH begins in the body.

        Raises:
            Unframed: the topic or packet id is cut short.
        """
        if len(self.body) < 2:
            raise Unframed("a PUBLISH without a topic")
        start = 2 + int(struct.unpack_from(">H", self.body)[0]) + (2 if self.qos else 0)
        if start > len(self.body):
            raise Unframed("a PUBLISH whose topic is longer than itself")
        return start

    def acknowledgement(self) -> Packet:
        """Return the PUBACK of a PUBLISH with QoS 1."""
        start = self.payload_start
        return Packet(PUBACK, 0, self.body[start - 2 : start])

    def repeated(self) -> Packet:
        """Return the PUBLISH as a sender repeats it: same id, DUP set where QoS allows it."""
        return replace(self, flags=self.flags | _DUP) if self.qos else self

    def flipped(self, bit: int) -> Packet:
        """Return the PUBLISH with one bit of its payload flipped; `bit` counts round and round."""
        start = self.payload_start
        if start == len(self.body):
            return self
        body = bytearray(self.body)
        index = bit % (8 * (len(body) - start))
        body[start + index // 8] ^= 1 << index % 8
        return replace(self, body=bytes(body))

    def truncated(self, share: float) -> Packet:
        """Return the PUBLISH with this share of its payload, as a whole packet."""
        start = self.payload_start
        return replace(self, body=self.body[: start + int(share * (len(self.body) - start))])


async def read(reader: asyncio.StreamReader, first: int, max_bytes: int) -> Packet:
    """Return the packet whose first byte was read already.

    Raises:
        Unframed: a length of more than four bytes, or more than `max_bytes`; nothing was read of it.
        asyncio.IncompleteReadError: the connection ended in the middle.
    """
    length = 0
    for shift in (0, 7, 14, 21):
        (digit,) = await reader.readexactly(1)
        length |= (digit & 0x7F) << shift
        if not digit & 0x80:
            break
    else:
        raise Unframed("a length of more than four bytes")
    if length > max_bytes:
        raise Unframed(f"a packet of {length} bytes; at most {max_bytes} pass")
    return Packet(first >> 4, first & 0x0F, await reader.readexactly(length))
