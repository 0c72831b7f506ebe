"""What a client may count on: an upload has been averaged only when the coordinator says so.

A client's durable state (control variate, residual) may follow from an upload only if that went
into the mean. Whether it did is known to the coordinator alone: the upload may be late, or lost.

    client       promise: keeps what it is about to upload, with the round, durably  -> upload
    coordinator  closes the round, writes down whom it averaged                      -> next task
    client       settle: learns from the task whether that round was its last averaged one,
                 and applies or forgets what was pending; the memory is replaced as a whole, with
                 the change made and the promise gone, so it is applied once, also after a reboot

A client has at most one promise: it settles the old one before it makes the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.method import Memory, Turn

ROUND, PENDING, COMMITTED = "pending_round", "pending.", "committed"


def promise(memory: Memory, turn: Turn, **kept: npt.ArrayLike) -> None:
    """Keep what the state will need if this round's upload is averaged."""
    memory[ROUND] = np.asarray(turn.number)
    for name, value in kept.items():
        memory[PENDING + name] = np.asarray(value)


def is_due(memory: Memory, turn: Turn) -> bool:
    """Whether the pending upload was averaged."""
    return turn.averaged is not None and ROUND in memory and int(memory[ROUND]) == turn.averaged


def settle(memory: Memory, turn: Turn) -> dict[str, npt.NDArray[Any]] | None:
    """Forget the promise. Return what was kept if its upload was averaged, else None.

    A coordinator that never averaged this client has begun the run anew: nothing of the memory holds.
    """
    if turn.averaged is None and COMMITTED in memory:
        memory.clear()
    found = is_due(memory, turn)
    memory.pop(ROUND, None)
    names = [name for name in memory if name.startswith(PENDING)]
    kept = {name.removeprefix(PENDING): memory.pop(name) for name in names}
    if not found:
        return None
    memory[COMMITTED] = np.asarray(turn.averaged)
    return kept


def committed(memory: Memory) -> int | None:
    """Return the last round that the memory follows from."""
    return int(memory[COMMITTED]) if COMMITTED in memory else None
