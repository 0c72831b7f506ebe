"""Pairing, on the coordinator: who shows that it knows a code is put on the list."""

from __future__ import annotations

import time
from collections.abc import Callable

from coordinator.registry import PENDING, Device, Registry
from protocol.errors import NotAdmitted
from protocol.messages import Pair, Paired
from protocol.pairing import Exchange, is_proof

# Wrong proofs that are looked at within a second. A code cannot be guessed; this bounds what trying costs us.
MAX_TRIES = 20
WAITS = "waits for: sparsefleet fleet accept"


class Enrolment:
    """The codes of one fleet, in use."""

    def __init__(
        self, fleet: str, public: bytes, listed: Registry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`public` is the coordinator's key."""
        self._fleet, self._public, self._listed, self._clock = fleet, public, listed, clock
        self._second, self._num_tries = 0, 0

    def let_in(self, message: Pair) -> None:
        """Put a device on the list. One that is on it already has not got its answer: it may have it again.

        Raises:
            NotAdmitted: it knows no code that can still be used, or comes with the name or the key of another.
        """
        self._spare()
        if (known := self._listed.device(message.client_id)) is not None:
            return self._check(known, message)
        exchange = self._exchange(message)
        for code, (_, status) in self._listed.codes().items():
            if not is_proof(message.proof, exchange.device_proof(code)):
                continue
            if (holder := self._listed.holder(message.public_key)) is not None:
                raise NotAdmitted(f"it brings the key of {holder.client_id}: is its card a copy?")
            reason = WAITS if status == PENDING else ""
            device = Device(message.client_id, message.public_key, status, reason, code)
            if self._listed.pair(device):
                return None
        self._num_tries += 1
        raise NotAdmitted("it knows no pairing code that can still be used")

    def _check(self, device: Device, message: Pair) -> None:
        if device.public_key != message.public_key:
            raise NotAdmitted(
                f"another device is called {message.client_id} already. If it was replaced, or its state was lost: "
                f"sparsefleet fleet reject {message.client_id}"
            )
        if not device.code or not is_proof(message.proof, self._exchange(message).device_proof(device.code)):
            self._num_tries += 1
            raise NotAdmitted("it is on the list by another pairing code")

    def answer(self, message: Pair) -> Paired:
        """Return the coordinator's proof for a device that was let in or checked."""
        device = self._listed.device(message.client_id)
        if device is None:
            raise NotAdmitted("it was taken off the list meanwhile")
        return Paired(message.nonce, self._exchange(message).coordinator_proof(device.code))

    def _exchange(self, message: Pair) -> Exchange:
        # Our own key, whatever the device heard: if that was another, the proof is wrong.
        return Exchange(self._fleet, message.client_id, message.public_key, self._public, message.nonce)

    def _spare(self) -> None:
        second = int(self._clock())
        if second != self._second:
            self._second, self._num_tries = second, 0
        if self._num_tries >= MAX_TRIES:
            raise NotAdmitted("too many wrong pairing codes in this second")
