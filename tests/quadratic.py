"""A federation without a network: quadratics f_i(x) = 1/2 (x - b_i)' A_i (x - b_i), trained exactly.

Every weight is prunable. Messages are lost on demand; a client that is lost keeps its memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from coordinator.aggregate import Accumulator
from protocol.layout import PRUNABLE, Layout
from protocol.messages import Training
from protocol.method import TRAIN, LocalStep, Memory, Method, Turn
from protocol.sparse import SparseVector


class Quadratic:
    """Local training: full-batch gradient descent."""

    steps_per_epoch = 1

    def __init__(self, hessian: np.ndarray, optimum: np.ndarray, layout: Layout | None = None) -> None:
        self.hessian, self.optimum = np.asarray(hessian, np.float64), np.asarray(optimum, np.float64)
        self.layout = layout or Layout.of([("w", (len(self.optimum),), PRUNABLE)])
        self.training = training()
        self.seen: list[np.ndarray] = []  # What the gradient was taken at.

    def gradient_at(self, dense: np.ndarray) -> np.ndarray:
        return self.hessian @ (dense - self.optimum)

    def scoring_batches(self, per_class: int) -> Sequence[object]:
        return [None]

    def gradient(self, model: SparseVector, batch: object, temperature: float = 1.0) -> np.ndarray:
        return self.gradient_at(model.dense())[model.mask.indices].astype(np.float32)

    def fit(
        self, model: SparseVector, step: LocalStep | None = None, num_steps: int | None = None
    ) -> SparseVector:
        step = step or LocalStep()
        v = model.values.copy()
        for _ in range(self.training.local_epochs if num_steps is None else num_steps):
            at = SparseVector(model.mask, step.weights(v)).dense()
            self.seen.append(at)
            g = self.gradient_at(at)[model.mask.indices].astype(np.float32)
            v -= np.float32(self.training.learning_rate) * step.gradient(g, v)
            step.project(v)
        return SparseVector(model.mask, v)

    def loss_of(self, model: SparseVector) -> float:
        gap = model.dense() - self.optimum
        return float(gap @ self.hessian @ gap) / 2

    def as_sent(self, upload: SparseVector) -> SparseVector:
        return upload


def training(learning_rate: float = 0.1, local_epochs: int = 1) -> Training:
    return Training(local_epochs=local_epochs, batch_size=1, learning_rate=learning_rate)


class Federation:
    """A coordinator and its clients, round by round."""

    def __init__(
        self,
        method: Method,
        clients: Sequence[Quadratic],
        initial: np.ndarray,
        training: Training,
        examples: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.method, self.clients, self.layout = method, clients, clients[0].layout
        self.initial = np.asarray(initial, np.float32)
        self.training, self.seed = training, seed
        self.examples = examples or [1] * len(clients)
        for client in clients:
            client.training = training
        self.current = method.begin(self.layout, self.initial)
        self.memories: list[Memory] = [{} for _ in clients]
        self.averaged: dict[int, int] = {}
        self.means: dict[int, SparseVector] = {}
        self.uploads: dict[int, SparseVector] = {}
        self.number = method.first_round

    def turn(self, client: int | None = None) -> Turn:
        averaged = None if client is None else self.averaged.get(client)
        stage = self.method.stage(self.number)
        return Turn(self.number, stage, self.seed, self.training, len(self.clients), averaged)

    def round(self, cohort: Collection[int] | None = None, lost: Collection[int] = ()) -> None:
        """Run a round with these clients, of which the uploads of some never arrive."""
        turn, method = self.turn(), self.method
        cohort = sorted(range(len(self.clients)) if cohort is None else cohort)
        bodies = method.broadcast(turn, self.current, self.initial, self.layout)
        accumulator = Accumulator(method.upload_size(turn, self.layout)[0], method.counts_coverage)
        self.uploads = {}
        for i in cohort:
            upload = self.work(i, bodies)
            if i not in lost:
                accumulator.fold(upload, method.weight(turn, self.examples[i]))
                self.uploads[i] = upload
        if self.uploads:
            self.current = method.aggregate(turn, self.current, accumulator.mean(), self.layout)
            if method.commits and turn.stage == TRAIN:
                self.means[self.number] = self.current.vector
                self.averaged.update(dict.fromkeys(self.uploads, self.number))
        self.number += 1

    def work(self, i: int, bodies: Mapping[str, SparseVector]) -> SparseVector:
        """One client's work; its memory is written."""
        turn, memory = self.turn(i), self.memories[i]
        mean = {"mean": self.means[turn.averaged]} if turn.averaged in self.means else {}
        wanted = self.method.inputs(turn, memory)
        received = {name: vector for name, vector in {**bodies, **mean}.items() if name in wanted}
        return self.method.client(turn, received, self.clients[i], memory)

    def uploads_mean(self) -> np.ndarray:
        """Plain mean of the last round's uploads."""
        return np.mean([upload.dense() for upload in self.uploads.values()], axis=0)

    def settled(self) -> list[np.ndarray]:
        """Every client's control variate, with what is pending applied as its next task would."""
        found = []
        for i, memory in enumerate(self.memories):
            kept, h = dict(memory), np.asarray(memory.get("control", np.zeros(self.layout.num_trainable)))
            if self.averaged.get(i) is not None and int(kept.get("pending_round", -1)) == self.averaged[i]:
                sent = np.zeros(self.layout.size)
                sent[kept["pending.indices"]] = kept["pending.values"]
                h = h + kept["pending.scale"] * (self.means[self.averaged[i]].dense() - sent)
            found.append(h)
        return found


def federated_optimum(clients: Sequence[Quadratic]) -> np.ndarray:
    """Minimiser of the mean of all f_i."""
    total = sum(client.hessian for client in clients)
    return np.linalg.solve(total, sum(client.hessian @ client.optimum for client in clients))
