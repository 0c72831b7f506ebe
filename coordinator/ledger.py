"""What the round under way must not lose: whom it asked, and each accepted update with its body.

    open(round, cohort, present) -> accept(updates) ... -> a checkpoint holds their mean -> open(next round)

A client may count on a receipt, so an update stands here before its receipt goes out. A run that was
killed reads its round back: the same cohort is asked, what was accepted is folded in again, and no
client trains it twice. Of earlier rounds only the digests stay, so that whoever missed the receipt is
told "duplicate", not "late".

SQLite with a write-ahead log, each commit synced: the disk may fill up or the power fail at any moment.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError
from protocol.messages import Update, decode, encode

LEDGER = "ledger.db"
SCHEMA = 1
_TABLES = (
    "CREATE TABLE run (instance TEXT NOT NULL)",
    "CREATE TABLE opened (round INTEGER PRIMARY KEY, cohort TEXT NOT NULL, present TEXT NOT NULL)",
    "CREATE TABLE accepted (client TEXT NOT NULL, base INTEGER NOT NULL, digest TEXT NOT NULL, "
    "round INTEGER NOT NULL, message BLOB, body BLOB, PRIMARY KEY (client, base, digest))",
    "CREATE INDEX accepted_in ON accepted (round)",
    "CREATE TABLE quarantined (client TEXT PRIMARY KEY, reason TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Opened:
    """A round as it was opened."""

    number: int
    cohort: list[str]
    present: list[str]  # Who could have been asked: a resumed run waits for them.


class Ledger:
    """The file of one run. Not thread-safe.

    Raises:
        ConfigError: the file is damaged, or of a newer version.
        sqlite3.Error: from any method, where the disk is full or failed; nothing was changed.
    """

    def __init__(self, folder: Path) -> None:
        """Open the run's ledger, or begin it."""
        path = folder / LEDGER
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            (schema,) = self._database.execute("PRAGMA user_version").fetchone()
            if schema == 0:
                with self._database:
                    for statement in ("BEGIN", *_TABLES, f"PRAGMA user_version = {SCHEMA}"):
                        self._database.execute(statement)
                    self._database.execute("INSERT INTO run VALUES (?)", (secrets.token_hex(8),))
            elif schema != SCHEMA:
                raise ConfigError(f"{path} has schema {schema}; this version reads {SCHEMA}")
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{path} cannot be read: {error}. Without it the round under way begins anew: move it away"
            ) from error

    @property
    def instance(self) -> str:
        """Tells this run from others of its name; a resumed run keeps it."""
        (instance,) = self._database.execute("SELECT instance FROM run").fetchone()
        return str(instance)

    def close(self) -> None:
        """Write back what is in the log, and close."""
        self._database.close()

    def open(self, round_number: int, cohort: Collection[str], present: Collection[str]) -> None:
        """Note a new round; bodies of earlier ones go."""
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute(
                "UPDATE accepted SET message = NULL, body = NULL WHERE round < ? AND body IS NOT NULL",
                (round_number,),
            )
            self._database.execute("DELETE FROM opened")
            self._database.execute(
                "INSERT INTO opened VALUES (?, ?, ?)",
                (round_number, json.dumps(list(cohort)), json.dumps(list(present))),
            )

    def opened(self) -> Opened | None:
        """Return the round that was opened last."""
        row = self._database.execute("SELECT round, cohort, present FROM opened").fetchone()
        return Opened(row[0], json.loads(row[1]), json.loads(row[2])) if row else None

    def accept(self, round_number: int, updates: Iterable[tuple[Update, bytes]]) -> None:
        """Keep updates that are part of a round's mean: all of them, or none."""
        rows = [
            (update.client_id, update.round_number, update.body.digest, round_number, encode(update), body)
            for update, body in updates
        ]
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO accepted VALUES (?, ?, ?, ?, ?, ?)", rows)

    def accepted(self, round_number: int) -> Iterator[tuple[Update, bytes]]:
        """Return what was accepted in a round, in the order of acceptance."""
        rows = self._database.execute(
            "SELECT message, body FROM accepted WHERE round = ? AND body IS NOT NULL ORDER BY rowid",
            (round_number,),
        )
        for message, body in rows:
            update = decode(message)
            assert isinstance(update, Update)
            yield update, body

    def accepted_clients(self, round_number: int) -> set[str]:
        """Return who was accepted in a round."""
        rows = self._database.execute("SELECT client FROM accepted WHERE round = ?", (round_number,))
        return {client for (client,) in rows}

    def knows(self, update: Update) -> bool:
        """Whether this very update was accepted, in whatever round."""
        key = (update.client_id, update.round_number, update.body.digest)
        found = self._database.execute(
            "SELECT 1 FROM accepted WHERE client = ? AND base = ? AND digest = ?", key
        )
        return found.fetchone() is not None

    def quarantine(self, client_id: str, reason: str) -> None:
        """Remember whom not to ask any more."""
        with self._database:
            self._database.execute("INSERT OR IGNORE INTO quarantined VALUES (?, ?)", (client_id, reason))

    def quarantined(self) -> set[str]:
        """Return whom not to ask."""
        return {client for (client,) in self._database.execute("SELECT client FROM quarantined")}
