"""What a federated method is, and what it may use. No I/O, no clock: the simulator runs it as it is.

A method is one frozen struct in protocol/methods/, whose fields are its hyperparameters and whose
two halves stand one below the other in the order in which a round runs them:

    server half   begin()       the state before the first round
                  broadcast()   what the cohort receives
    client half   inputs()      which of it a client needs
                  client()      local work -> what is uploaded
    server half   aggregate()   the mean of the uploads -> the next state
                  model()       the state -> the model that is evaluated, and handed over at the end

What a method does not say is as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError
from protocol.layout import Layout, Vector
from protocol.messages import Training
from protocol.sparse import Mask, SparseVector

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]  # examples [n, ...]; labels, see Examples
Memory = MutableMapping[str, npt.NDArray[Any]]  # What a client keeps between rounds, by name.

TRAIN = "train"
CONTROL_SUM = "control_sum"  # Of Global.state: the weighted sum of all clients' control variates.


@dataclass(frozen=True)
class Turn:
    """Which round it is, as both halves see it."""

    number: int
    stage: str  # What the round is for: TRAIN, or a word of the method's own.
    seed: int  # Of the run: what all clients must draw alike is drawn from it.
    training: Training
    population: int = 0  # Server half: how many clients the run has.
    averaged: int | None = None  # Client half: the last round whose mean has an upload of this client.


@dataclass(frozen=True, eq=False)
class Global:
    """The server's state: dense global weights, zero outside the mask, and what a method adds by name."""

    weights: Vector
    mask: Mask
    state: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def vector(self) -> SparseVector:
        """The weights as they travel."""
        return SparseVector.of(self.weights, self.mask)


@dataclass(frozen=True, eq=False)
class Mean:
    """The weighted mean of a round's uploads; entries that an upload does not store count as zero."""

    values: npt.NDArray[np.float64]
    num_updates: int
    coverage: npt.NDArray[np.float64] | None = None  # Share of the weight that stores each entry, if asked.


class LocalStep:
    """What a method changes in a step of local SGD; this one changes nothing.

    `v` is what SGD moves: the stored entries that are trained (prunable ones first, then dense
    ones), float32. Weight decay and momentum act on it.
    """

    # Share of each layer's saved input, by weight, that stays for its weight gradient; see
    # PortableRuntime.prune_saved. Needs Method.prunes_activations.
    activations: Mapping[str, float] = MappingProxyType({})

    def weights(self, v: Vector) -> Vector:
        """Return the weights that the forward and backward pass run on."""
        return v

    def gradient(self, g: Vector, v: Vector) -> Vector:
        """Return the gradient of `v`, from that of weights(v); `g` may be written."""
        return g

    def project(self, v: Vector) -> None:
        """Change `v` in place after the step."""


class LocalTraining(Protocol):
    """What the device offers to a client half."""

    @property
    def layout(self) -> Layout:
        """The model's layout."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the local examples."""

    def scoring_batches(self, per_class: int) -> Sequence[Batch]:
        """Up to `per_class` local examples of each class, in batches of at most the task's size."""

    def gradient(self, model: SparseVector, batch: Batch, temperature: float = 1.0) -> Vector:
        """Gradient of the mean loss at `model`, in the order of its stored entries.

        Logits are divided by `temperature`. Entries of statistics are zero.
        """

    def fit(
        self, model: SparseVector, step: LocalStep | None = None, num_steps: int | None = None
    ) -> SparseVector:
        """Train for the task's local epochs, or for so many steps; the mask stays, statistics follow."""

    def loss_of(self, model: SparseVector) -> float:
        """Mean loss of `model` over the local examples; batch norm uses the batches' statistics."""

    def as_sent(self, upload: SparseVector) -> SparseVector:
        """Return what the coordinator will read when this is uploaded: rounded as the wire rounds."""


def refuse_momentum(name: str, training: Training) -> None:
    """Control variates follow from the steps of plain SGD.

    Raises:
        ConfigError: local training has momentum.
    """
    if training.momentum:
        raise ConfigError(f"method {name!r} corrects steps of plain SGD: set training.momentum = 0")


class Method(msgspec.Struct, frozen=True):
    """Both halves of a federated method; the defaults are those of dense training of one model."""

    name: ClassVar[str]
    # Clients keep what follows from rounds in which they were averaged (protocol/commit.py). The
    # coordinator tells each client which that was, and raises an alarm if the client thinks otherwise.
    commits: ClassVar[bool] = False
    # Clients need the very mean that their upload went into, however late they return.
    keeps_means: ClassVar[bool] = False
    counts_coverage: ClassVar[bool] = False  # Whether aggregate() needs Mean.coverage.
    trains_dense: ClassVar[bool] = False  # Whether clients hold all weights, however few they receive.
    # For each stored weight, besides SGD's, at the client's peak: measured as in tests/edge_client/test_memory.py.
    device_floats: ClassVar[int] = 0

    @property
    def first_round(self) -> int:
        """Number of the first round: 1, or less if rounds of preparation come before training."""
        return 1

    @property
    def fixed_mask(self) -> bool:
        """Whether the global mask stays what it is once training has begun.

        Then it travels once and later bodies refer to it.
        """
        return False

    @property
    def tolerates_staleness(self) -> bool:
        """Whether an upload of the training stage is a change that later versions of the model can take."""
        return False

    @property
    def nests(self) -> bool:
        """Whether slower boards may train a part of the global mask (`nested`)."""
        return False

    def nested(self, current: Global, share: float, layout: Layout) -> Mask:
        """Return the part of the global mask that has `share` of its density. A smaller share lies in a larger one.

        Raises:
            NotImplementedError: the method does not nest.
        """
        raise NotImplementedError

    @property
    def unequal_steps(self) -> bool:
        """Whether clients may make unequal numbers of local steps, which the weights in the mean make up for.

        So it is where uploads are what local SGD makes of the received model, averaged by examples.
        """
        return False

    @property
    def prunes_activations(self) -> bool:
        """Whether local steps prune saved activations: clients then run the graph that can."""
        return False

    def check(self, training: Training, download_values: str) -> None:
        """Refuse local training or a wire format that the method cannot work with.

        Raises:
            ConfigError: with what to change.
        """

    def stage(self, round_number: int) -> str:
        """What the round is for: TRAIN, or a word of the method's own."""
        return TRAIN

    # Server half

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Return the server's state before the first round: dense."""
        return Global(initial, Mask.full(layout.size))

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Return the bodies that the cohort may fetch, by name: the global weights."""
        return {"weights": current.vector}

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """Return the names of the bodies that this client needs."""
        return ("weights",)

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Do the local work and return what is uploaded."""
        raise NotImplementedError

    # Server half

    def weight(self, turn: Turn, num_examples: int) -> int:
        """Return the weight of an update in the mean: its examples."""
        return num_examples

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """Return (length, prunable prefix) of the vector that clients upload: a model."""
        return layout.size, layout.num_prunable

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Return the next state."""
        raise NotImplementedError

    def model(self, current: Global, layout: Layout) -> Global:
        """Return the model that the state stands for: its weights and mask."""
        return current

    def is_finished(self, current: Global) -> bool:
        """Whether no further round is needed, although the experiment allows more."""
        return False

    def alarm(self, current: Global, layout: Layout) -> str:
        """Return what is wrong with the state, "" if nothing: an invariant that the method relies on."""
        return ""
