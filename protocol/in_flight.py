"""What was published and is not acknowledged yet: enough for a fast network's delay.

Little enough, too: a small message does not wait for minutes behind chunks on a slow network, and not
much is sent again after a broker's restart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

MAX_IN_FLIGHT_PACKETS = 32
MAX_IN_FLIGHT_BYTES = 256 << 10


class InFlight:
    """Room for packets under way; every change is told to whoever waits on the condition."""

    def __init__(self, changed: threading.Condition) -> None:
        """Nothing is under way."""
        self._changed = changed
        self._sizes: dict[int, int] = {}  # Message id -> bytes.
        self._early: set[int] = set()  # Acknowledged before `sent` was called.
        self._num_acknowledged = 0
        self.num_packets = 0
        self.num_bytes = 0
        self.num_waiting = 0  # Threads that wait for room.

    @property
    def is_empty(self) -> bool:
        """Whether all that was sent is acknowledged."""
        return not self._sizes

    def reserve(self, num_bytes: int, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait for room and take it; as long as acknowledgements arrive, however slowly, there is hope.

        Returns whether there was room: not if nothing was acknowledged for `timeout_s`, or it is over.
        """
        with self._changed:
            while not is_over() and not self._has_room(num_bytes):
                before = self._num_acknowledged
                self.num_waiting += 1
                self._changed.notify_all()
                is_better = self._changed.wait_for(
                    lambda: self._num_acknowledged != before or is_over(),  # noqa: B023
                    timeout_s,
                )
                self.num_waiting -= 1
                if not is_better:
                    return False
            if is_over():
                return False
            self.num_packets += 1
            self.num_bytes += num_bytes
            return True

    def sent(self, message_id: int, num_bytes: int) -> None:
        """Learn under which id it went."""
        with self._changed:
            if message_id in self._early:
                self._early.remove(message_id)
                self.release(num_bytes)
            else:
                self._sizes[message_id] = num_bytes

    def acknowledged(self, message_id: int) -> None:
        """Give the room back, as soon as it is known how much that was."""
        with self._changed:
            num_bytes = self._sizes.pop(message_id, None)
            if num_bytes is None:
                self._early.add(message_id)
            else:
                self.release(num_bytes)

    def release(self, num_bytes: int) -> None:
        """Give back the room of one packet: it is acknowledged, or was never sent."""
        with self._changed:
            self.num_packets -= 1
            self.num_bytes -= num_bytes
            self._num_acknowledged += 1
            self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        if not self.num_packets:
            return True  # However large it is.
        return self.num_packets < MAX_IN_FLIGHT_PACKETS and self.num_bytes + num_bytes <= MAX_IN_FLIGHT_BYTES
