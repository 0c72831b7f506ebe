"""One task, from received bodies to the update's vector: no transport, no clock of its own.

`Trainer` is the LocalTraining that methods are written against: SGD over the runtime's flat
buffers, in the order in which the seed shuffles the local examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edge_client import notify
from edge_client.optimizer import Sgd
from edge_client.runtime import Runtime
from protocol.artifact import Manifest
from protocol.errors import ArtifactError
from protocol.examples import Examples, batches, num_batches, of_each_class
from protocol.layout import STATISTIC, Layout, Vector
from protocol.messages import Training
from protocol.method import Batch, LocalStep
from protocol.sparse import SparseVector


class Trainer:
    """Local training on one artifact and one set of examples."""

    def __init__(
        self,
        manifest: Manifest,
        runtime: Runtime,
        examples: Examples,
        training: Training,
        rng: np.random.Generator,
        as_sent: Callable[[SparseVector], SparseVector] = lambda upload: upload,
        keeps_local: bool = False,
        most_steps: int = 0,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Hold what a task needs; nothing runs yet. `as_sent` rounds as the wire does.

        `fit` makes at most `most_steps` steps; 0: as many as the epochs have. `after_step` may stop the task by an
        exception, which passes through the method.

        `keeps_local` is for simulations: it takes the memory of one more model.
        """
        self._manifest, self._runtime, self._examples = manifest, runtime, examples
        self._training, self._rng = training, rng
        self.as_sent, self._after_step = as_sent, after_step
        self.num_steps = self.num_examples = 0  # Examples as often as they were seen.
        self._keeps_local, self._most_steps = keeps_local, most_steps
        self.local: SparseVector | None = (
            None  # If kept, the client's own model: what its passes would run on.
        )
        self.loss = float("nan")  # Mean over the last local epoch.

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self._manifest.layout

    @property
    def steps_per_epoch(self) -> int:
        """See LocalTraining."""
        return num_batches(len(self._examples), self._training.batch_size)

    def scoring_batches(self, per_class: int) -> Sequence[Batch]:
        """See LocalTraining."""
        chosen = of_each_class(self._examples, per_class, self._rng)
        return list(batches(chosen, self._training.batch_size, self._rng))

    def gradient(self, model: SparseVector, batch: Batch, temperature: float = 1.0) -> Vector:
        """See LocalTraining."""
        self._runtime.bind(model)
        self._check(self._step(batch, temperature))
        gradient = self._runtime.gradient.copy()
        gradient[model.mask.num_below(self.layout.num_trainable) :] = 0.0
        return gradient

    def fit(
        self, model: SparseVector, step: LocalStep | None = None, num_steps: int | None = None
    ) -> SparseVector:
        """Mini-batch SGD with momentum and weight decay, as torch.optim.SGD defines them.

        The momentum starts at zero in every round: it describes the client's own path, which the
        aggregation has left. Without a `step` of the method's own, SGD moves the runtime's values
        in place.

        Raises:
            ArtifactError: the loss or a weight is no longer finite; this runtime cannot prune
                activations.
        """
        runtime = self._runtime
        runtime.bind(model)
        if step is not None and step.activations:
            runtime.prune_saved(step.activations)
        try:
            trained = self._descend(model, step, num_steps)
        finally:
            if step is not None and step.activations:
                runtime.prune_saved({})
        if not np.isfinite(trained.values).all():
            raise ArtifactError(
                "training left weights that are not finite: lower the learning rate, or check the examples"
            )
        return trained

    def _descend(self, model: SparseVector, step: LocalStep | None, num_steps: int | None) -> SparseVector:
        runtime, training = self._runtime, self._training
        num_trained = model.mask.num_below(self.layout.num_trainable)
        weights, gradient = runtime.values[:num_trained], runtime.gradient[:num_trained]
        statistics, batch_statistics = runtime.values[num_trained:], runtime.gradient[num_trained:]
        share = self._statistic_momentum()
        optimizer = Sgd(training, num_trained)
        v = weights if step is None else weights.copy()
        remaining = training.local_epochs * self.steps_per_epoch if num_steps is None else num_steps
        if self._most_steps:
            remaining = min(remaining, self._most_steps)
        while remaining > 0:
            losses: list[float] = []
            for batch in batches(self._examples, training.batch_size, self._rng):
                if step is not None:
                    weights[:] = step.weights(v)
                losses.append(self._check(self._step(batch)))
                with np.errstate(over="ignore", invalid="ignore"):  # The next loss tells.
                    optimizer.step(v, gradient if step is None else step.gradient(gradient, v))
                    if step is not None:
                        step.project(v)
                    statistics += share * (batch_statistics - statistics)
                if len(losses) == remaining:
                    break
            remaining -= len(losses)
            self.loss = math.fsum(losses) / len(losses)
        if self._keeps_local:
            local = v if step is None else step.weights(v)
            self.local = SparseVector(model.mask, np.concatenate([local, statistics]))
        return SparseVector(model.mask, np.concatenate([v, statistics]))

    def loss_of(self, model: SparseVector) -> float:
        """See LocalTraining."""
        self._runtime.bind(model)
        sizes, losses = [], []
        for batch in batches(self._examples, self._training.batch_size, self._rng):
            sizes.append(len(batch[1]))
            losses.append(self._check(self._step(batch)))
        return float(np.average(losses, weights=sizes))

    def _statistic_momentum(self) -> npt.NDArray[np.float32]:
        """The batch's share in each running statistic, in the order of the statistics part."""
        pieces = self.layout.of_role(STATISTIC)
        shares = [np.full(p.size, self._manifest.statistic_momentum[p.name], np.float32) for p in pieces]
        return np.concatenate(shares) if shares else np.empty(0, np.float32)

    def _step(self, batch: Batch, temperature: float = 1.0) -> float:
        self.num_steps += 1
        self.num_examples += len(batch[1])
        return self._runtime.step(batch, temperature)

    def _check(self, loss: float) -> float:
        notify.beat()  # Once a step: a round may take longer than the watchdog waits.
        self._after_step()
        if not np.isfinite(loss):
            raise ArtifactError(
                f"the training loss is {loss}: lower the learning rate, or check the examples"
            )
        return loss
