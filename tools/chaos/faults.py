"""The faults by name, what each does, and how one is written: [up:|down:]NAME=VALUE[@START[+LENGTH]][/EVERY]."""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.errors import ConfigError

UP, DOWN, BOTH = "up", "down", "both"  # Client to broker, broker to client.

SHARE, SECONDS, BITS, PROCESS = "SHARE", "SECONDS", "BIT/S", "PID|NAME"

# Packet faults meet PUBLISH only; the others meet every byte of a connection.
PACKET = {
    "drop": (SHARE, "of published packets vanish; nobody acknowledges them"),
    "lose": (SHARE, "vanish after being acknowledged: a broker that dies, or whose queue is full"),
    "duplicate": (SHARE, "are delivered again, marked DUP; and again, up to five in all"),
    "reorder": (SHARE, "are overtaken by what follows within 0.3 s"),
    "corrupt": (SHARE, "have one bit of their payload flipped"),
    "truncate": (SHARE, "lose the end of their payload"),
}
LINK = {
    "delay": (SECONDS, "until each byte arrives, one way"),
    "rate": (BITS, "of a connection, one way"),
    "loss": (SHARE, "of 1460-byte segments are lost, and TCP repeats each after a pause"),
}
MOMENT = {
    "stall": (SECONDS, "in which nothing passes and all connections stay open: a pulled cable"),
    "cut": (SECONDS, "without any connection: all are reset, new ones too; 0 resets once"),
}
SIGNAL = {
    "kill": (PROCESS, "gets SIGKILL; whoever supervises it restarts it"),
    "stop": (PROCESS, "is stopped, and continued after LENGTH (5 s)"),
}
ALL = {**PACKET, **LINK, **MOMENT, **SIGNAL}

_FORM = re.compile(
    r"(?:(?P<direction>up|down):)?(?P<name>[a-z]+)=(?P<value>[^@+/]+)"
    r"(?:@(?P<start>[0-9.]+))?(?:\+(?P<length>[0-9.]+))?(?:/(?P<every>[0-9.]+))?\Z"
)


@dataclass(frozen=True)
class Fault:
    """One fault and when it happens."""

    name: str
    value: float  # Of kill and stop: 0.
    process: str = ""
    direction: str = BOTH
    start_s: float = 0.0
    length_s: float | None = None  # None: to the end.
    every_s: float | None = None  # None: once.


def parse(text: str) -> Fault:
    """Read one fault.

    Raises:
        ConfigError: the form, the name, a share above 1, or a time that makes no sense.
    """
    found = _FORM.match(text)
    if found is None:
        raise ConfigError(
            f"fault {text!r}: write [up:|down:]NAME=VALUE[@START[+LENGTH]][/EVERY], times in seconds; "
            "for example drop=0.05, up:delay=0.3, cut=10@30/120 or stop=client-003@10+5"
        )
    name = found["name"]
    if name not in ALL:
        raise ConfigError(f"fault {text!r}: there is no {name!r}; there are {', '.join(ALL)}")
    if found["direction"] and name in (*MOMENT, *SIGNAL):
        raise ConfigError(f"fault {text!r}: {name} has no direction")
    times = [_number(text, found[group]) for group in ("start", "length", "every")]
    start_s, length_s, every_s = times
    value = 0.0 if name in SIGNAL else _number(text, found["value"]) or 0.0
    if ALL[name][0] == SHARE and value > 1:
        raise ConfigError(f"fault {text!r}: a share is at most 1")
    if name in MOMENT and length_s is not None:
        raise ConfigError(f"fault {text!r}: its value is its length already")
    if every_s is not None and (every_s <= 0 or (name in (*PACKET, *LINK) and length_s is None)):
        raise ConfigError(f"fault {text!r}: what is repeated must end before: NAME=VALUE@START+LENGTH/EVERY")
    process = found["value"] if name in SIGNAL else ""
    return Fault(name, value, process, found["direction"] or BOTH, start_s or 0.0, length_s, every_s)


def _number(text: str, part: str | None) -> float | None:
    if part is None:
        return None
    try:
        value = float(part)
    except ValueError as error:
        raise ConfigError(f"fault {text!r}: {part!r} is no number") from error
    if not 0 <= value < 1e12:
        raise ConfigError(f"fault {text!r}: {part!r} must lie between 0 and 1e12")
    return value


def listing() -> str:
    """Return what there is, a line each."""
    return "\n".join(f"  {name + '=' + unit:<19} {text}" for name, (unit, text) in ALL.items())
