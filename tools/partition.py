"""Which example goes where: pure functions from labels, ids and a seed to row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]

_ATTEMPTS = 100  # Beyond, more luck does not help: alpha is too small for so many clients.
_TEST_STREAM, _CLIENT_STREAM = 0, 1  # Independent random numbers: the test part is the same for any split.


def iid(num_examples: int, clients: int, seed: int) -> list[Rows]:
    """Deal all examples at random; the numbers differ by at most one."""
    order = np.random.default_rng([seed, _CLIENT_STREAM]).permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(labels: Array, clients: int, alpha: float, min_examples: int, seed: int) -> list[Rows]:
    """Divide each class among the clients in proportions drawn from Dirichlet(alpha).

    This is the division by class of Yurochkin et al. 2019 and Li et al. 2022 (NIID-Bench), usual
    under the name LDA; Hsu et al. 2019 draw the label proportions of each client instead, with
    equal sizes. Here sizes differ too. Repeated with fresh random numbers until all have enough.

    Raises:
        ConfigError: no draw gave every client `min_examples`.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, _CLIENT_STREAM, attempt])
        parts: list[list[Rows]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1]
            for part, piece in zip(parts, np.split(rows, (ends * len(rows)).astype(int)), strict=True):
                part.append(piece)
        whole = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(part) for part in whole) >= min_examples:
            return whole
    raise ConfigError(
        f"{_ATTEMPTS} draws with alpha {alpha:g} left a client with fewer than {min_examples} examples; "
        f"raise alpha, or take fewer than {clients} clients"
    )


def natural(ids: Array, clients: int | None, min_examples: int) -> tuple[list[str], list[Rows]]:
    """Return ids and rows, sorted by id; of the `clients` largest if given.

    Raises:
        ConfigError: fewer ids than `clients`, or one has fewer than `min_examples`.
    """
    values, counts = np.unique(ids, return_counts=True)
    if clients is not None:
        if clients > len(values):
            raise ConfigError(f"there are {len(values)} distinct ids, not {clients}")
        largest = np.sort(np.argsort(-counts, kind="stable")[:clients])
        values, counts = values[largest], counts[largest]
    few = np.flatnonzero(counts < min_examples)
    if few.size:
        raise ConfigError(
            f"id {values[few[0]]} has {counts[few[0]]} training examples, at least {min_examples} are needed "
            f"({few.size} such ids); keep the largest with clients = {int((counts >= min_examples).sum())}"
        )
    return [str(value) for value in values], [np.flatnonzero(ids == value) for value in values]


def cut_test(labels: Array, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return training and test rows; of each class the same share, but never its last example."""
    rng = np.random.default_rng([seed, _TEST_STREAM])
    held_out: list[Rows] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out.append(rows[:count])
    test = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), test, assume_unique=True), test
