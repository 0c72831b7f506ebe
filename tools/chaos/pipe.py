"""One direction of one connection: packets come in, are harmed, wait for their time, and leave.

    read a frame -> drop, lose, duplicate, corrupt, truncate -> heap by time -> write: rate, loss

Delay and order live in the heap: a packet leaves when its time has come, and one that is to be
overtaken gets a later time. Every pipe draws from a generator of its own, so that the same seed meets
the same packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections import Counter

from tools.chaos.faults import DOWN, LINK, PACKET, UP
from tools.chaos.packets import PUBLISH, Packet, Unframed, read

MAX_PACKET_BYTES = 16 << 20  # More than ours ever send: what is larger ends the connection.
BUFFER_BYTES = 256 << 10  # Queued in one direction before the sender has to wait, as in a router.
SEGMENT_BYTES = 1460
MAX_COPIES = 5  # Of a packet that is duplicated, each further one with the same chance.
REORDER_S = 0.3
RETRANSMIT_S = 0.2  # The least pause before TCP repeats a segment (Linux: TCP_RTO_MIN).
FAREWELL_S = 5.0  # For the last bytes after one side has closed.
_TLS = 0x16  # First byte of a TLS handshake; no MQTT client begins with it.

log = logging.getLogger(__name__)


class Conditions:
    """The faults of both directions as they are now, and how often each happened."""

    def __init__(self) -> None:
        """No fault."""
        none = dict.fromkeys((*PACKET, *LINK), 0.0)
        self.faults = {UP: none, DOWN: none}
        self.stall_until_s = 0.0  # Of time.monotonic
        self.counts: Counter[str] = Counter()

    @property
    def stalled_s(self) -> float:
        """How long nothing will pass; not above 0: it flows."""
        return self.stall_until_s - time.monotonic()


class Pipe:
    """One direction of one connection."""

    def __init__(
        self,
        conditions: Conditions,
        direction: str,
        seed: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """`back`, the pipe of the other direction, is set before `run`."""
        self.back: Pipe
        self._conditions, self._direction = conditions, direction
        self._reader, self._writer = reader, writer
        self._random = random.Random(seed)  # noqa: S311  Reproducible.
        self._heap: list[tuple[float, int, bytes]] = []
        self._queued_bytes = self._sequence = 0
        self._last_due_s = self._free_s = 0.0  # Of the last packet in order; when the link is free again.
        self._changed = asyncio.Event()
        self._is_ended = False

    @property
    def _faults(self) -> dict[str, float]:
        return self._conditions.faults[self._direction]

    async def run(self) -> None:
        """Read, harm and write until the sender ends and all of it has left."""
        writing = asyncio.create_task(self._write())
        try:
            try:
                with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                    await self._read()
            except Unframed as error:
                log.warning("connection reset direction=%s reason=%s", self._direction, error)
            self._is_ended = True
            self._changed.set()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await writing
                self._writer.close()
                await asyncio.wait_for(self._writer.wait_closed(), FAREWELL_S)
        finally:
            writing.cancel()

    async def _read(self) -> None:
        while first := await self._reader.read(1):
            if first[0] == _TLS:
                await self._read_sealed(first)
                return
            packet = await read(self._reader, first[0], MAX_PACKET_BYTES)
            self._conditions.counts["packets"] += 1
            for one, is_late in self._harmed(packet):
                self.put(one.encode(), is_late)
            await self._wait_for_room()

    async def _read_sealed(self, first: bytes) -> None:
        """Pass TLS on as bytes: link faults apply, and packets cannot be told apart."""
        data = first
        while data:
            if any(self._faults[name] for name in PACKET):
                raise Unframed(
                    f"{', '.join(PACKET)} cannot see into TLS; use delay, rate, loss, stall and cut"
                )
            self.put(data)
            await self._wait_for_room()
            data = await self._reader.read(SEGMENT_BYTES)

    def _harmed(self, packet: Packet) -> list[tuple[Packet, bool]]:
        """Return what becomes of a packet, and whether others may overtake it."""
        faults = self._faults
        if packet.kind != PUBLISH:
            return [(packet, False)]
        if self._happens("drop", faults):
            return []
        if packet.qos == 1 and self._happens("lose", faults):
            self.back.put(packet.acknowledgement().encode())
            return []
        packets = [packet]
        while len(packets) < MAX_COPIES and self._happens("duplicate", faults):
            packets.append(packet.repeated())
        if self._happens("corrupt", faults):
            packets = [one.flipped(self._random.getrandbits(32)) for one in packets]
        if self._happens("truncate", faults):
            packets = [one.truncated(self._random.random()) for one in packets]
        is_late = self._happens("reorder", faults)
        return [(one, is_late) for one in packets]

    def _happens(self, name: str, faults: dict[str, float]) -> bool:
        if not faults[name] or self._random.random() >= faults[name]:
            return False
        self._conditions.counts[name] += 1
        return True

    def put(self, data: bytes, is_late: bool = False) -> None:
        """Queue bytes that arrive after the delay, behind all before; if late, after some that follow."""
        due_s = max(self._last_due_s, time.monotonic() + self._faults["delay"])
        if is_late:
            due_s += self._random.uniform(0, REORDER_S)
        else:
            self._last_due_s = due_s
        self._sequence += 1
        heapq.heappush(self._heap, (due_s, self._sequence, data))
        self._queued_bytes += len(data)
        self._changed.set()

    async def _wait_for_room(self) -> None:
        while self._queued_bytes > BUFFER_BYTES:
            self._changed.clear()
            await self._changed.wait()

    async def _write(self) -> None:
        while self._heap or not self._is_ended:
            if not self._heap:
                self._changed.clear()
                await self._changed.wait()
                continue
            wait_s = max(self._heap[0][0] - time.monotonic(), self._conditions.stalled_s)
            if wait_s > 0:
                # In slices: a fault may end before, and an earlier packet may come.
                await asyncio.sleep(min(wait_s, 0.05))
                continue
            data = heapq.heappop(self._heap)[2]
            for start in range(0, len(data), SEGMENT_BYTES):
                await self._segment(data[start : start + SEGMENT_BYTES])
            self._queued_bytes -= len(data)
            self._changed.set()

    async def _segment(self, data: bytes) -> None:
        """Write one segment when the link is free and TCP would have got it through."""
        faults = self._faults
        pause_s = 8 * len(data) / faults["rate"] if faults["rate"] else 0.0
        while faults["loss"] and self._random.random() < faults["loss"]:
            self._conditions.counts["loss"] += 1
            pause_s += max(RETRANSMIT_S, 2 * faults["delay"])
        self._free_s = max(self._free_s, time.monotonic()) + pause_s
        while (wait_s := max(self._free_s - time.monotonic(), self._conditions.stalled_s)) > 0.001:
            await asyncio.sleep(min(wait_s, 0.05))
        self._writer.write(data)
        await self._writer.drain()
