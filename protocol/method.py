"""What a federated method is, and what it may use. No I/O, no clock: the simulator runs it as it is.

A method is one frozen dataclass in protocol/methods/, whose fields are its hyperparameters and
whose two halves stand one below the other in the order in which a round runs them:

    server half   broadcast()   what the cohort receives
    client half   inputs()      which of it a client needs
                  client()      local work -> what is uploaded
    server half   aggregate()   the mean of the uploads -> the next global model
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from protocol.layout import Layout, Vector
from protocol.sparse import Mask, SparseVector

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]  # examples [n, ...]; labels, see Examples
Memory = MutableMapping[str, npt.NDArray[Any]]  # What a client keeps between rounds, by name.

TRAIN = "train"


@dataclass(frozen=True, eq=False)
class Global:
    """The server's state: dense global weights, zero outside the mask, and the mask."""

    weights: Vector
    mask: Mask

    @property
    def vector(self) -> SparseVector:
        """The weights as they travel."""
        return SparseVector.of(self.weights, self.mask)


@dataclass(frozen=True, eq=False)
class Mean:
    """The weighted mean of a round's uploads; entries that an upload does not store count as zero."""

    values: npt.NDArray[np.float64]
    num_updates: int


class LocalTraining(Protocol):
    """What the device offers to a client half."""

    @property
    def layout(self) -> Layout:
        """The model's layout."""

    def scoring_batches(self, per_class: int) -> Sequence[Batch]:
        """Up to `per_class` local examples of each class, in batches of at most the task's size."""

    def gradient(self, model: SparseVector, batch: Batch, temperature: float = 1.0) -> Vector:
        """Gradient of the mean loss at `model`, in the order of its stored entries.

        Logits are divided by `temperature`. Entries of statistics are zero.
        """

    def fit(self, model: SparseVector) -> SparseVector:
        """Train for the task's local epochs; the mask stays, statistics follow the batches."""


class Method(Protocol):
    """Both halves of a federated method."""

    name: ClassVar[str]

    @property
    def first_round(self) -> int:
        """Number of the first round: 1, or less if rounds of preparation come before training."""

    def stage(self, round_number: int) -> str:
        """What the round is for: TRAIN, or a word of the method's own."""

    @property
    def fixed_mask(self) -> bool:
        """Whether the global mask stays what it is once training has begun.

        Then it travels once and later bodies refer to it.
        """

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Return the server's state before the first round."""

    def broadcast(self, stage: str, current: Global, initial: Vector) -> dict[str, SparseVector]:
        """Return the bodies that the cohort may fetch, by name."""

    def inputs(self, stage: str, memory: Memory) -> tuple[str, ...]:
        """Return the names of the bodies that this client needs."""

    def client(
        self, stage: str, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Do the local work and return what is uploaded."""

    def weight(self, stage: str, num_examples: int) -> int:
        """Return the weight of an update in the mean."""

    def upload_size(self, stage: str, layout: Layout) -> tuple[int, int]:
        """Return (length, prunable prefix) of the vector that clients upload in this stage."""

    def aggregate(self, stage: str, current: Global, mean: Mean, layout: Layout) -> Global:
        """Return the next global model."""
