"""One round, as a state machine without I/O.

Rule 1: every decision about who is late, what counts and when a round ends is taken here.
Rule 2: nothing here reads a clock or a socket. Time comes in as an argument, messages come in as
values, and what the coordinator answers goes out as a return value.

          an update, below the quorum
         +---------------------------+
         v                           |
        OPEN ------------------------+
         |   the quorum is met, nobody is left who could answer (once somebody has), or the deadline has passed
         v
       CLOSED    whatever comes now is late

and for each client of the cohort:

        ASKED --announce--> SENDING --complete--> DONE
          |                    |
          +---refuse, lose-----+----> OUT --rejoin--> ASKED
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Verdict = Literal["accepted", "late", "duplicate", "rejected"]


class Standing(Enum):
    """Where a client of the cohort is in this round."""

    ASKED = "asked"
    SENDING = "sending"
    DONE = "done"
    OUT = "out"


@dataclass
class Round:
    """One round of a run."""

    number: int
    stage: str
    cohort: tuple[str, ...]
    quorum: int  # Updates that close the round; at most the size of the cohort.
    opened_s: float
    deadline_s: float  # Seconds after opening.
    # Who is at work since an earlier round, and since which; its update counts in this one.
    since: dict[str, int] = field(default_factory=dict)
    is_asynchronous: bool = False  # What comes while the round is being closed still counts.
    standing: dict[str, Standing] = field(init=False)
    reasons: dict[str, str] = field(default_factory=dict)  # Why a client is out.
    away: set[str] = field(default_factory=set)  # Who is out because it is gone: it may come back.

    def __post_init__(self) -> None:
        """Everybody has been asked."""
        self.standing = dict.fromkeys(self.cohort, Standing.ASKED)

    def of(self, standing: Standing) -> list[str]:
        """The clients with this standing, in the order of the cohort."""
        return [client for client in self.cohort if self.standing[client] is standing]

    def announce(self, client_id: str, round_number: int, now_s: float) -> Verdict:
        """A client says that its update is ready. "accepted" means: fetch the body."""
        asked_in = self.since.get(client_id, self.number)
        if round_number != asked_in or client_id not in self.standing or self.is_too_late(now_s):
            return "late"
        # QoS 1 delivers at least once, so the same announcement can come twice; the first counts.
        if self.standing[client_id] in (Standing.SENDING, Standing.DONE):
            return "duplicate"
        self.standing[client_id] = Standing.SENDING
        self.reasons.pop(client_id, None)
        return "accepted"

    def complete(self, client_id: str, now_s: float) -> Verdict:
        """The body has arrived and is good. "accepted" means: fold it in."""
        if self.is_too_late(now_s):
            return "late"
        if self.standing[client_id] is Standing.DONE:
            return "duplicate"
        self.standing[client_id] = Standing.DONE
        return "accepted"

    def drop(self, client_id: str, reason: str, is_away: bool = False) -> None:
        """A client refused, was lost, or sent rubbish. It does not count, unless it is done already."""
        if self.standing.get(client_id) in (Standing.ASKED, Standing.SENDING):
            self.standing[client_id] = Standing.OUT
            self.reasons[client_id] = reason
            if is_away:
                self.away.add(client_id)

    def rejoin(self, client_id: str, now_s: float) -> bool:
        """A restarted client is back. Return whether it should get the task again."""
        if (
            client_id not in self.standing
            or self.standing[client_id] is Standing.DONE
            or self.is_closed(now_s)
        ):
            return False
        self.standing[client_id] = Standing.ASKED
        self.reasons.pop(client_id, None)
        self.away.discard(client_id)
        return True

    def is_closed(self, now_s: float) -> bool:
        """Whether the round is over."""
        return self.is_settled or now_s >= self.opened_s + self.deadline_s

    def is_too_late(self, now_s: float) -> bool:
        """Whether an update does not count any more."""
        return self.is_closed(now_s) and not self.is_asynchronous

    @property
    def is_settled(self) -> bool:
        """Whether it is over before its deadline: quorum met, or nobody is left.

        As long as nobody has delivered, those who are gone are waited for: without an update a round is
        wasted, and a network that failed for a moment may have taken everybody.
        """
        num_done = len(self.of(Standing.DONE))
        if num_done >= self.quorum:
            return True
        if self.of(Standing.ASKED) or self.of(Standing.SENDING):
            return False
        return num_done > 0 or not self.away
