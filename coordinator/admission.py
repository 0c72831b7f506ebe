"""Who is let in: every message of a client passes here before anybody believes it.

    bytes -> decode -> Signed? -- yes --> on the list? --> signature --> said before? --> message
                          |                  | no: a guest, where unsigned devices are allowed
                          no --> allowed, and of nobody who signs? --> message

A device on the list is believed under its key only. Where the experiment allows unsigned devices, others
are let in too: unsigned as they come, signed under the key that they came with first in this run.

What is turned away counts against nobody: anybody can send rubbish in another's name.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

from coordinator.enrolment import Enrolment
from coordinator.registry import ACCEPTED, QUARANTINED, Device, Registry, Session, State
from protocol.errors import Cloned, Dismissed, NotAdmitted, ProtocolError, Replayed
from protocol.identity import Key, fingerprint
from protocol.messages import (
    AnyMessage,
    Dismissal,
    Hello,
    Join,
    Leave,
    Message,
    Pair,
    Paired,
    Signed,
    Want,
    decode,
    encode,
)
from protocol.signed import Sealer, opened
from protocol.topics import Address
from protocol.transport import Packet

MAX_GUESTS = 100_000
COPIED = (
    "two devices with its key run at the same time: a card was copied after its first start, or a state folder was put "
    "back from a copy. Remove the folder `identity` of each state folder, reject this device, and pair each anew, "
    "under a name of its own"
)
HOME_VARIABLE = "SPARSEFLEET_HOME"


def default_home() -> Path:
    """Where a coordinator keeps its key and its lists of devices, unless it is told otherwise."""
    configured = os.environ.get(HOME_VARIABLE)
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(configured) if configured else base / "sparsefleet"


class Admission:
    """The door of one fleet, and the coordinator's own key."""

    def __init__(
        self, key: Key, session: int, listed: Registry, guests: Registry | None = None, fleet: str = "fleet"
    ) -> None:
        """`guests` keeps the keys of devices that are not listed; None: nobody is let in who is not."""
        self.listed, self.guests = listed, guests
        self._enrolment = Enrolment(fleet, key.public, listed)
        self._sealer = Sealer(key, session)
        self._has_edited = False
        self._heard: dict[str, State] = {}  # The last state of each since this start.

    @classmethod
    def at(cls, home: Path, fleet: str, guests: Path | None = None) -> Admission:
        """Open key and list in the coordinator's folder, and count this start.

        Raises:
            UserError: they cannot be read or written.
        """
        key, listed = Key.load_or_make(home), Registry(home / f"{fleet}.db")
        return cls(key, listed.next_session(), listed, Registry(guests) if guests else None, fleet)

    @classmethod
    def open_house(cls) -> Admission:
        """Everybody is let in, and nothing is kept: for simulations and tests."""
        return cls(Key.generate(), 1, Registry(), Registry())

    def close(self) -> None:
        """Close the files."""
        for registry in self._registries():
            registry.close()

    def sync(self) -> None:
        """Bring what was written down so far to the disk itself."""
        for registry in self._registries():
            registry.sync()

    def hello(self, online: bool) -> bytes:
        """Return what the coordinator says of itself."""
        return encode(Hello(online, self._sealer.session, self._sealer.key.public))

    def seal(self, client_id: str, topic: str, message: Message) -> bytes:
        """Return a message for one client: signed, unless it is one that does not sign either."""
        found = self._find(client_id)
        if found is None:
            return encode(message)
        sessions = found[1].sessions(client_id)
        return self._sealer.seal(topic, message, sessions[0].number if sessions else 0)

    def answer(self, message: Pair) -> Paired:
        """Return what convinces a device that was just let in."""
        return self._enrolment.answer(message)

    def dismissal(self, topic: str, error: Dismissed) -> bytes:
        """Return what tells a device that it is not let in."""
        return self._sealer.seal(topic, Dismissal(str(error)), error.session)

    def was_edited(self) -> bool:
        """Whether the list has been edited, by us or by others, since this was asked last."""
        is_edited, self._has_edited = self.listed.was_edited() or self._has_edited, False
        return is_edited

    def is_welcome(self, client_id: str) -> bool:
        """Whether this client may take part now."""
        found = self._find(client_id)
        return self.guests is not None if found is None else found[0].status == ACCEPTED

    def open(self, address: Address, packet: Packet) -> AnyMessage:
        """Return what a client said.

        Raises:
            NotAdmitted: nobody knows who said it, or that was said before.
            ProtocolError: the client said it, and it is rubbish.
        """
        client_id = str(address.client_id)
        try:
            message = decode(packet.payload)
        except ProtocolError as error:
            raise NotAdmitted(f"garbled: {error}") from error
        if isinstance(message, Want):
            return message  # It decides nothing: whoever asks, the chunks go to all.
        if isinstance(message, Signed):
            message = self._signed(client_id, packet.topic, message)
        elif self._find(client_id) is not None:
            raise NotAdmitted("it is not signed, and this client signs what it says")
        elif self.guests is None:
            raise NotAdmitted("it is not signed. Pair the device: sparsefleet fleet code")
        _check_author(client_id, message)
        return message

    def _signed(self, client_id: str, topic: str, signed: Signed) -> AnyMessage:
        inside = _inside(signed)
        if isinstance(inside, Pair):
            opened(signed, topic, inside.public_key)
            _check_author(client_id, inside)
            self._enrolment.let_in(inside)
            return inside
        device, registry = self._find(client_id) or self._guest(client_id, topic, signed, inside)
        message = opened(signed, topic, device.public_key)
        _check_author(client_id, message)
        if device.status != ACCEPTED:
            reason = f"{device.status}: {device.reason}" if device.reason else device.status
            raise Dismissed(reason, signed.session)
        if isinstance(message, Join | Leave) and message.session != signed.session:
            raise NotAdmitted(f"session {message.session} in an envelope of session {signed.session}")
        self._note(device, registry, signed, message)
        return message

    def _note(self, device: Device, registry: Registry, signed: Signed, message: AnyMessage) -> None:
        """Write down that it was said, before anybody acts upon it.

        Raises:
            NotAdmitted: it was said before, or by another with the same key, or cannot be written down.
        """
        client_id = device.client_id
        sessions = registry.sessions(client_id)
        newest = sessions[0] if sessions else Session(-1)
        known = next((one for one in sessions if one.number == signed.session), None)
        before = known or Session(signed.session, signed.boot)
        is_copy = before.boot != signed.boot
        if not is_copy and isinstance(message, Join | Leave):
            after = self._state(before, message, signed.counter)
        elif not is_copy:
            after = replace(before, window=before.window.after(signed.counter))
        if is_copy or signed.session < newest.number:
            # Made since we have started, and never heard: not a recording, unless it is a will.
            if signed.audience == self._sealer.session and not isinstance(message, Leave):
                self._quarantine(device, registry)
            raise Replayed(f"session {signed.session} is over, or another's; the newest is {newest.number}")
        try:
            registry.keep(client_id, after)
        except sqlite3.Error as error:  # The disk is full: the device will say it again.
            raise NotAdmitted(f"it cannot be written down that it was said: {error}") from error
        if isinstance(message, Join | Leave):
            self._heard[client_id] = after.state

    def _state(self, before: Session, message: Join | Leave, counter: int) -> Session:
        """Joins and leaves are ordered by connection: a will was signed before what its connection said.

        They are retained, so that the last one comes again when the coordinator comes back; that is news
        to a coordinator that was restarted, once.
        """
        is_gone = isinstance(message, Leave)
        state = (before.number, message.connection, is_gone, counter)
        if state < before.state or (
            state == before.state and self._heard.get(message.client_id, state[:1]) >= state
        ):
            raise Replayed(
                f"a {'leave' if is_gone else 'join'} of connection {message.connection}, once more"
            )
        return replace(before, connection=message.connection, is_gone=is_gone, state_counter=counter)

    def _quarantine(self, device: Device, registry: Registry) -> None:
        registry.put(replace(device, status=QUARANTINED, reason=COPIED))
        self._has_edited = True
        raise Cloned(COPIED)

    def _guest(
        self, client_id: str, topic: str, signed: Signed, inside: AnyMessage | None
    ) -> tuple[Device, Registry]:
        """Let in whoever is not listed, under the key that it brings.

        Raises:
            NotAdmitted: unsigned devices are not allowed, or it brings no key, or another's.
        """
        public = inside.public_key if isinstance(inside, Join) else b""
        if not public:
            raise NotAdmitted("signed by a device that is not on the list, and has not joined")
        _check_author(client_id, opened(signed, topic, public))
        if self.guests is None:
            key = fingerprint(public)
            raise Dismissed(
                f"a device with the key {key} is not on the list. Pair it: sparsefleet fleet code",
                signed.session,
            )
        for registry in self._registries():
            if (holder := registry.holder(public)) is not None:
                raise NotAdmitted(f"it brings the key of {holder.client_id}: is its card a copy?")
        if self.guests.num_devices() >= MAX_GUESTS:
            raise NotAdmitted(f"there are {MAX_GUESTS} guests already")
        device = Device(client_id, public)
        self.guests.put(device)
        return device, self.guests

    def _find(self, client_id: str) -> tuple[Device, Registry] | None:
        for registry in self._registries():
            if (device := registry.device(client_id)) is not None:
                return device, registry
        return None

    def _registries(self) -> list[Registry]:
        return [self.listed] if self.guests is None else [self.listed, self.guests]


def _check_author(client_id: str, message: AnyMessage) -> None:
    """Compare the topic's client with the one that the message names."""
    author = getattr(message, "client_id", client_id)
    if author != client_id:
        raise NotAdmitted(f"a message of {client_id!r} speaks for {author!r}")


def _inside(signed: Signed) -> AnyMessage | None:
    """Return what is in an envelope, not to be believed yet; None if it is no message."""
    try:
        return decode(signed.payload)
    except ProtocolError:
        return None
