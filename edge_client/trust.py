"""Whom this device believes, and how it says who it is.

It signs everything that decides something. Once it knows its coordinator's key, it does nothing that is not
signed with that key, for this session of its own. Before that, it believes whomever the broker lets speak
for the coordinator.
"""

from __future__ import annotations

import logging
from pathlib import Path

from protocol.durable import replace_file
from protocol.errors import DataError, NotAdmitted, Replayed
from protocol.identity import KEY, Key
from protocol.messages import AnyMessage, Hello, Message, Signed, decode, encode
from protocol.signed import Sealer, Window, opened

log = logging.getLogger(__name__)

FOLDER = "identity"  # Of the state folder.
COORDINATOR = "coordinator.pub"


class Trust:
    """One start of one device."""

    def __init__(self, key: Key, session: int, coordinator: bytes | None = None) -> None:
        """`coordinator` is the only key whose orders are obeyed; None obeys any."""
        self.public, self.session = key.public, session
        self._signs = True
        self._heard = 0  # Session of the coordinator, as it says of itself.
        self._sealer = Sealer(key, session)
        self._coordinator = coordinator
        self._path: Path | None = None  # Where its coordinator's key is kept.
        self._newest = -1  # Session of the coordinator,
        self._window = Window()  # and what it has said in it.

    @classmethod
    def at(cls, state: Path, session: int) -> Trust:
        """Open what lies in the state folder.

        Raises:
            UserError: it cannot be read or written.
        """
        folder = state / FOLDER
        if session == 1 and (folder / KEY).exists():
            raise DataError(
                f"{state} has lost the count of this device's starts, and has its key still: what it says would be "
                f"taken for a recording. Remove {folder}, and pair anew (`sparsefleet fleet reject` the name first)"
            )
        key, path = Key.load_or_make(folder), folder / COORDINATOR
        try:
            coordinator = bytes.fromhex(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}); remove it, and pair anew") from error
        trust = cls(key, session, coordinator)
        trust._path = path
        return trust

    @property
    def is_paired(self) -> bool:
        """Whether it knows whom to obey."""
        return self._coordinator is not None

    def pin(self, coordinator: bytes) -> None:
        """Obey this key only, from now on and after each restart.

        Raises:
            OSError: it cannot be written down; nothing has changed.
        """
        if self._path is not None:
            replace_file(self._path, coordinator.hex().encode() + b"\n")
        self._coordinator = coordinator

    def seal(self, topic: str, message: Message) -> bytes:
        """Return the message, signed; to a coordinator of version 0.1, which reads no signatures, as it is."""
        return self._sealer.seal(topic, message, self._heard) if self._signs else encode(message)

    def hear(self, hello: Hello) -> bool:
        """Note which coordinator is there; return whether it has not heard of this device, or not in its words."""
        if self.is_paired and hello.public_key and hello.public_key != self._coordinator:
            where = self._path or "its pin"
            log.error(
                "the coordinator that is there has another key than the one that this device is paired with, and is "
                "not obeyed. Is it another machine, or was its folder lost? To pair anew, remove %s",
                where,
            )
        before = self._heard, self._signs
        self._heard = hello.session
        self._signs = bool(hello.public_key) or self.is_paired
        return before[0] not in (0, self._heard) or before[1] != self._signs

    def open(self, topic: str, payload: bytes) -> AnyMessage:
        """Return what the coordinator said.

        Raises:
            NotAdmitted: somebody else said it, or that was said before.
            ProtocolError: it is no message.
        """
        message = decode(payload)
        if self._coordinator is None:
            return decode(message.payload) if isinstance(message, Signed) else message
        if not isinstance(message, Signed):
            raise NotAdmitted("it is not signed, and this device is paired with a coordinator that signs")
        content = opened(message, topic, self._coordinator)
        if message.audience != self.session or message.session < self._newest:
            raise Replayed("it was said to an earlier session, or in one")
        window = self._window if message.session == self._newest else Window()
        self._window, self._newest = window.after(message.counter), message.session
        return content
