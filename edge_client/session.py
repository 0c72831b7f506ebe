"""One task, from received bodies to the update's vector: no transport, no clock of its own.

`Trainer` is the LocalTraining that methods are written against: SGD over the runtime's flat
buffers, in the order in which the seed shuffles the local examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_client.optimizer import Sgd
from edge_client.runtime import Runtime
from protocol.artifact import Manifest
from protocol.errors import ArtifactError
from protocol.examples import Examples, batches, of_each_class
from protocol.layout import STATISTIC, Layout, Vector
from protocol.messages import Training
from protocol.method import Batch
from protocol.sparse import SparseVector


def generator(*parts: object) -> np.random.Generator:
    """Return a random generator seeded by what it is for (seed, client, round).

    Hashed, so that neither the order of rounds nor a restart changes what a client draws.
    """
    text = "/".join(str(part) for part in parts)
    return np.random.default_rng(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))


class Trainer:
    """Local training on one artifact and one set of examples."""

    def __init__(
        self,
        manifest: Manifest,
        runtime: Runtime,
        examples: Examples,
        training: Training,
        rng: np.random.Generator,
    ) -> None:
        """Hold what a task needs; nothing runs yet."""
        self._manifest, self._runtime, self._examples = manifest, runtime, examples
        self._training, self._rng = training, rng
        self.num_steps = 0
        self.loss = float("nan")  # Mean over the last local epoch.

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self._manifest.layout

    def scoring_batches(self, per_class: int) -> Sequence[Batch]:
        """See LocalTraining."""
        chosen = of_each_class(self._examples, per_class, self._rng)
        return list(batches(chosen, self._training.batch_size, self._rng))

    def gradient(self, model: SparseVector, batch: Batch, temperature: float = 1.0) -> Vector:
        """See LocalTraining."""
        self._runtime.bind(model)
        self._check(self._runtime.step(batch, temperature))
        self.num_steps += 1
        gradient = self._runtime.gradient.copy()
        gradient[model.mask.below(self.layout.num_trainable).nnz :] = 0.0
        return gradient

    def fit(self, model: SparseVector) -> SparseVector:
        """Mini-batch SGD with momentum and weight decay, as torch.optim.SGD defines them.

        The momentum starts at zero in every round: it describes the client's own path, which the
        aggregation has left.

        Raises:
            ArtifactError: the loss or a weight is no longer finite.
        """
        runtime, training = self._runtime, self._training
        runtime.bind(model)
        num_trained = model.mask.below(self.layout.num_trainable).nnz
        weights, gradient = runtime.values[:num_trained], runtime.gradient[:num_trained]
        statistics, batch_statistics = runtime.values[num_trained:], runtime.gradient[num_trained:]
        share = self._statistic_momentum()
        optimizer = Sgd(training, num_trained)
        for _ in range(training.local_epochs):
            losses: list[float] = []
            for batch in batches(self._examples, training.batch_size, self._rng):
                losses.append(self._check(runtime.step(batch)))
                with np.errstate(over="ignore", invalid="ignore"):  # The next loss tells.
                    optimizer.step(weights, gradient)
                    statistics += share * (batch_statistics - statistics)
            self.num_steps += len(losses)
            self.loss = float(np.mean(losses))
        if not np.isfinite(runtime.values).all():
            raise ArtifactError(
                "training left weights that are not finite: lower the learning rate, or check the examples"
            )
        return SparseVector(model.mask, runtime.values.copy())

    def _statistic_momentum(self) -> npt.NDArray[np.float32]:
        """The batch's share in each running statistic, in the order of the statistics part."""
        pieces = self.layout.of_role(STATISTIC)
        shares = [np.full(p.size, self._manifest.statistic_momentum[p.name], np.float32) for p in pieces]
        return np.concatenate(shares) if shares else np.empty(0, np.float32)

    def _check(self, loss: float) -> float:
        if not np.isfinite(loss):
            raise ArtifactError(
                f"the training loss is {loss}: lower the learning rate, or check the examples"
            )
        return loss
