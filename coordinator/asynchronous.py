"""Buffered asynchronous aggregation (FedBuff, Nguyen et al., 2022, arXiv 2106.06639).

    synchronous     a round waits for its cohort; what comes after it has closed is late, and dropped
    asynchronous    a round closes with the `buffer`-th update; who is still at work stays at work, and its
                    update counts in a later round, as a change to the model which that round has reached

An update that is s rounds old weighs 1 / (1 + s)^exponent of a fresh one; beyond `max_staleness` it is
late. The paper hands a client the newest model the moment it delivers. Here it waits for the next
round, so that nobody trains one version twice and fast boards do not outvote slow ones within a buffer.

Only for methods whose uploads are changes that make sense on another version of the model. Running
statistics are no such changes: a variance that fell from 1 to 0.1 in two clients' hands would end
below zero. What an old update says of them is taken as the value that it reached.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from protocol.layout import Vector
from protocol.sparse import SparseVector

# Weights are whole numbers, so that their sum does not depend on the order: a fresh update's is this
# many times its examples.
FRESH = 16


class AsynchronousConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Whether rounds wait for their cohort."""

    buffer: Annotated[int, msgspec.Meta(ge=0)] = 0  # Updates that close a round; 0: rounds are synchronous.
    max_staleness: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 10  # In rounds.
    exponent: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.5  # 0: stale updates weigh as fresh ones.

    def weight(self, fresh: int, staleness: int) -> int:
        """Return the weight of an update that would weigh `fresh` if it were of this round."""
        return max(1, round(FRESH * fresh * math.pow(1 + staleness, -self.exponent)))


def restated(update: SparseVector, then: Vector, now: Vector) -> SparseVector:
    """Return a change to the model with the statistics `now`, made as one to the model with those of `then`.

    Statistics are the last entries of an update, all of them stored.
    """
    values = update.values.copy()
    if then.size:
        values[-then.size :] += then - now
    return SparseVector(update.mask, values)
