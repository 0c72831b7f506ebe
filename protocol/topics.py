"""Topic names, who publishes on them, and whether they are retained: all in one table.

    sf/<protocol version>/<fleet>/...

Everything is published with QoS 1. A killed broker loses what it acknowledged (mosquitto without
persistence: 180 of 1,200 messages), so that receipts are needed anyway, and QoS 2 would cost a round
trip for nothing. Only state is retained, never a body: brokers drop bursts of retained messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol import PROTOCOL_VERSION
from protocol.errors import ConfigError

QOS = 1

CLIENT, COORDINATOR = "client", "coordinator"

# Kinds of topic
STATE, TASK, UPDATE, WANT, FETCH = "state", "task", "update", "want", "fetch"
BLOB_UP, BLOB_DOWN, REPEAT, HELLO = "blob-up", "blob-down", "repeat", "hello"


@dataclass(frozen=True)
class Rule:
    """One kind of topic."""

    levels: str  # Below the root; {id} and {digest} stand for one level each.
    sender: str
    retain: bool = False


TABLE = {
    STATE: Rule("dev/{id}/state", CLIENT, retain=True),  # Join, Leave; the will
    TASK: Rule("dev/{id}/task", COORDINATOR),  # Task, Receipt, End, Paired, Dismissal
    UPDATE: Rule("dev/{id}/update", CLIENT),  # Update, Refusal, Cost, Pair
    WANT: Rule("dev/{id}/want", CLIENT),  # Want: chunks of what the coordinator offers
    FETCH: Rule("dev/{id}/fetch", COORDINATOR),  # Want: chunks of what the client offers
    BLOB_UP: Rule("dev/{id}/blob/{digest}", CLIENT),  # chunks
    BLOB_DOWN: Rule("blob/{digest}", COORDINATOR),  # chunks, shared by the whole cohort
    REPEAT: Rule("dev/{id}/repeat/{digest}", COORDINATOR),  # chunks that few others have missed
    HELLO: Rule("coord/state", COORDINATOR, retain=True),  # Hello; the will
}

# The same as messages.Name, but \Z: a $ would let a final newline pass.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Address:
    """What a topic says: its kind, and the client and blob it is about."""

    kind: str
    client_id: str | None = None
    digest: str | None = None

    @property
    def rule(self) -> Rule:
        """The line of the table."""
        return TABLE[self.kind]


def check_name(what: str, name: str) -> str:
    """Return a client id or fleet name that may stand in a topic.

    Raises:
        ConfigError: it may not. Slashes and wildcards would let a client speak for another one.
    """
    if not _NAME.match(name):
        raise ConfigError(
            f"{what} {name!r}: use 1 to 64 letters, digits, dots, hyphens or underscores, "
            "and begin with a letter or digit"
        )
    return name


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str) -> None:
        """Check the name.

        Raises:
            ConfigError: the name cannot stand in a topic.
        """
        self.fleet = check_name("fleet", fleet)
        self.root = f"sf/{PROTOCOL_VERSION}/{fleet}/"

    def of(self, kind: str, client_id: str = "", digest: str = "") -> str:
        """Return a topic. Give the client and digest which its line in the table has.

        Raises:
            ConfigError: the client id cannot stand in a topic.
            ValueError: the digest is not one, or is missing.
        """
        levels = TABLE[kind].levels
        if "{id}" in levels:
            check_name("client id", client_id)
        if "{digest}" in levels and not _DIGEST.match(digest):
            raise ValueError(f"{digest!r} is not a SHA-256 in lower-case hexadecimal")
        return self.root + levels.format(id=client_id, digest=digest)

    def client_filters(self, client_id: str) -> tuple[str, ...]:
        """Return what a client subscribes to for good. It adds the blobs it needs, one by one."""
        return (self.of(HELLO), self.of(TASK, client_id), self.of(FETCH, client_id))

    def repeats(self, client_id: str) -> str:
        """Return the filter of chunks that are sent to one client alone; older brokers' rules do not know it."""
        return self.root + TABLE[REPEAT].levels.format(id=check_name("client id", client_id), digest="+")

    def coordinator_filters(self) -> tuple[str, ...]:
        """Return what the coordinator subscribes to: all that clients send."""
        return tuple(self.of_all(kind) for kind, rule in TABLE.items() if rule.sender == CLIENT)

    def of_all(self, kind: str) -> str:
        """Return the filter of one kind of topic, whoever's it is."""
        return self.root + TABLE[kind].levels.format(id="+", digest="+")

    def parse(self, topic: str) -> Address | None:
        """Return what a topic says, or None if it is none of this fleet and version."""
        if not topic.startswith(self.root):
            return None
        levels = topic[len(self.root) :].split("/")
        for kind, rule in TABLE.items():
            pattern = rule.levels.split("/")
            if len(pattern) != len(levels):
                continue
            found = dict(zip(pattern, levels, strict=True))
            client_id, digest = found.pop("{id}", None), found.pop("{digest}", None)
            if (
                all(level == given for level, given in found.items())
                and (client_id is None or _NAME.match(client_id))
                and (digest is None or _DIGEST.match(digest))
            ):
                return Address(kind, client_id, digest)
        return None
