"""Who is asked in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np


def choose(population: Collection[str], count: int, seed: int, round_number: int) -> list[str]:
    """Return `count` clients of the population, uniformly, sorted by id.

    Depends on the ids, the seed and the round alone, so a resumed run asks the same clients.
    """
    digest = hashlib.sha256(f"{seed}/cohort/{round_number}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
    known = sorted(population)
    if count >= len(known):
        return known
    return sorted(known[i] for i in rng.choice(len(known), count, replace=False))
