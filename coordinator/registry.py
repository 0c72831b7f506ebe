"""The list of devices: whose key is whose, who is let in, and what each has said last. SQLite.

Read and written by a running coordinator and by `sparsefleet fleet` at the same time; SQLite's locks
keep them apart, and nothing is cached, so that an order of the command counts from the next message on.

Written before a message is acted upon. A killed coordinator loses none of it. A power cut may take what
was written since the last `sync`, which the coordinator calls before it opens a round: what could then be
replayed are messages of that one round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from protocol.errors import ConfigError
from protocol.signed import Window

SCHEMA = 1
Status = Literal["accepted", "pending", "revoked", "quarantined"]
ACCEPTED: Status = "accepted"
PENDING: Status = "pending"
REVOKED: Status = "revoked"
QUARANTINED: Status = "quarantined"

_TABLES = """
create table if not exists devices (
    client_id text primary key, public_key blob not null unique, status text not null, reason text not null,
    code text not null);
create table if not exists sessions (
    client_id text not null, session integer not null, boot blob not null, connection integer not null,
    is_gone integer not null, state_counter integer not null, top integer not null, seen integer not null,
    primary key (client_id, session));
create table if not exists codes (code text primary key, uses integer not null, status text not null);
create table if not exists coordinator (session integer not null);
"""
KEPT_SESSIONS = 16  # Of each device; older ones are only known to be over.


@dataclass(frozen=True)
class Device:
    """One line of the list."""

    client_id: str
    public_key: bytes
    status: Status = ACCEPTED
    reason: str = ""  # Why it is not let in.
    code: str = ""  # The pairing code that it came with.


State = tuple[int, int, bool, int]


@dataclass(frozen=True)
class Session:
    """One start of a device, and how far we have heard it."""

    number: int
    boot: bytes = b""
    connection: int = 0  # Of the last Join or Leave,
    is_gone: bool = False  # which of them it was,
    state_counter: int = 0  # and its counter.
    window: Window = field(default_factory=Window)  # Of everything else.

    @property
    def state(self) -> State:
        """What orders joins and leaves."""
        return self.number, self.connection, self.is_gone, self.state_counter


class Registry:
    """One fleet's list. Without a path it lasts as long as the process."""

    def __init__(self, path: Path | None = None) -> None:
        """Open it; make it where it is missing, for the owner only.

        Raises:
            ConfigError: it cannot be opened, or was written by another version.
        """
        self._version = 0
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.touch(0o600)
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            (version,) = self._db.execute("pragma user_version").fetchone()
            if version not in (0, SCHEMA):
                raise ConfigError(f"{path} has schema {version}; this version reads {SCHEMA}")
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(f"begin immediate; {_TABLES} pragma user_version = {SCHEMA}; commit;")
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"the list of devices {path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def was_edited(self) -> bool:
        """Whether another process has changed it since this was asked last."""
        (version,) = self._db.execute("pragma data_version").fetchone()
        last, self._version = self._version, version
        return bool(last != version)

    def sync(self) -> None:
        """Bring what was written to the disk itself."""
        self._db.execute("pragma wal_checkpoint(full)")

    def next_session(self) -> int:
        """Count this start of the coordinator.

        Raises:
            ConfigError: it cannot be written down: the disk is full, or another holds the file.
        """
        try:
            with self._db:
                self._db.execute("begin immediate")
                (last,) = self._db.execute("select max(session) from coordinator").fetchone()
                self._db.execute("delete from coordinator")
                self._db.execute("insert into coordinator values (?)", ((last or 0) + 1,))
            self.sync()
        except sqlite3.Error as error:
            raise ConfigError(f"the start of the coordinator cannot be written down: {error}") from error
        return (last or 0) + 1

    # Devices

    def devices(self) -> list[Device]:
        """All of them, by name."""
        return [Device(*row) for row in self._db.execute("select * from devices order by client_id")]

    def num_devices(self) -> int:
        """How many they are."""
        return int(self._db.execute("select count(*) from devices").fetchone()[0])

    def device(self, client_id: str) -> Device | None:
        """The one of this name."""
        row = self._db.execute("select * from devices where client_id = ?", (client_id,)).fetchone()
        return Device(*row) if row else None

    def holder(self, public_key: bytes) -> Device | None:
        """The one of this key."""
        row = self._db.execute("select * from devices where public_key = ?", (public_key,)).fetchone()
        return Device(*row) if row else None

    def put(self, device: Device) -> None:
        """Add or replace one; its counters stay."""
        values = (device.client_id, device.public_key, device.status, device.reason, device.code)
        self._db.execute("insert or replace into devices values (?, ?, ?, ?, ?)", values)

    def forget(self, client_id: str) -> None:
        """Take one off the list, with its counters: whoever comes under this name next is new."""
        with self._db:
            self._db.execute("begin immediate")
            self._db.execute("delete from devices where client_id = ?", (client_id,))
            self._db.execute("delete from sessions where client_id = ?", (client_id,))

    # Pairing codes

    def add_code(self, code: str, uses: int, status: Status) -> None:
        """Let so many devices in by this code, with this status."""
        self._db.execute("insert into codes values (?, ?, ?)", (code, uses, status))

    def codes(self) -> dict[str, tuple[int, Status]]:
        """How many devices each code may still let in, and with which status."""
        rows = self._db.execute("select code, uses, status from codes where uses > 0")
        return {code: (uses, status) for code, uses, status in rows}

    def withdraw_codes(self) -> None:
        """Let in nobody by any code that was made so far."""
        self._db.execute("delete from codes")

    def pair(self, device: Device) -> bool:
        """Use up its code once and add it; return whether the code could still be used."""
        with self._db:
            self._db.execute("begin immediate")
            used = self._db.execute(
                "update codes set uses = uses - 1 where code = ? and uses > 0", (device.code,)
            )
            if used.rowcount != 1:
                return False
            self.put(device)
        return True

    # What they have said

    def sessions(self, client_id: str) -> list[Session]:
        """The last ones of a device, the newest first."""
        rows: Iterable[tuple[int, bytes, int, int, int, int, int]] = self._db.execute(
            "select session, boot, connection, is_gone, state_counter, top, seen from sessions "
            "where client_id = ? order by session desc",
            (client_id,),
        )
        return [
            Session(n, boot, connection, bool(is_gone), counter, Window(top, seen))
            for n, boot, connection, is_gone, counter, top, seen in rows
        ]

    def keep(self, client_id: str, session: Session) -> None:
        """Write down how far a session was heard."""
        values = (session.number, session.boot, session.connection, session.is_gone, session.state_counter)
        window = (session.window.top, session.window.seen)
        self._db.execute(
            "insert or replace into sessions values (?, ?, ?, ?, ?, ?, ?, ?)", (client_id, *values, *window)
        )
        self._db.execute(
            "delete from sessions where client_id = ? and session not in "
            "(select session from sessions where client_id = ? order by session desc limit ?)",
            (client_id, client_id, KEPT_SESSIONS),
        )
