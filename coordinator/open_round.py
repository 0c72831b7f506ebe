"""A round while it is open, and its line of the report when it has closed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from coordinator.aggregate import Accumulator
from coordinator.evaluate import Scores
from coordinator.report import IDLE, RoundRow
from coordinator.robust import Robust
from coordinator.round import Round, Standing
from protocol import codec
from protocol.layout import Layout
from protocol.messages import Phase, Task, Update
from protocol.method import CONTROL_SUM, Global
from protocol.pruning import densities
from protocol.sparse import SparseVector


@dataclass
class OpenRound:
    """A round and what has been collected in it."""

    round: Round
    task: Callable[[str], Task]  # Client -> what it is asked to do.
    accumulator: Accumulator | Robust  # Of the uploaded vectors.
    upload_size: tuple[int, int]  # Length and prunable prefix of an uploaded vector.
    weigh: Callable[[Update], int]  # Its weight in the mean.
    restate: Callable[[Update, SparseVector], SparseVector]  # As an update that was begun in this round.
    announced: dict[str, Update] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)  # Client -> digest of the body that was folded in.
    losses: list[tuple[float, int]] = field(default_factory=list)  # Training loss and examples.
    phases: list[Phase] = field(default_factory=list)
    uploaded_bytes: int = 0
    uploaded_bound_bytes: float = 0.0  # What its positions and values need, and its side data as they are.
    rejected: int = 0
    late: int = 0  # Updates that came too late for any round.
    stale: int = 0  # Of those that count: begun in an earlier round.

    def fold(self, update: Update, vector: SparseVector, body: bytes) -> None:
        """Make an update part of the round's mean.

        Raises:
            LimitExceeded: its values are too large for the exact sum; nothing was added.
        """
        self.accumulator.fold(vector, self.weigh(update))
        self.accepted[update.client_id] = update.body.digest
        self.losses.append((update.loss, update.num_examples))
        self.stale += update.round_number < self.round.number
        self.uploaded_bytes += update.body.size
        facts = codec.describe(body)
        self.uploaded_bound_bytes += facts["bound_bytes"] + facts["tail_bytes"]
        self.phases.extend(update.phases)

    def row(
        self,
        current: Global,
        model: Global,
        layout: Layout,
        scores: Scores | None,
        download_bytes: int,
        duration_s: float,
        alarms: int,
        resting: int,
    ) -> RoundRow:
        """Return the line of rounds.csv; `model` is what the state `current` stands for."""
        layers = densities(model.mask, layout).values()
        controls = current.state.get(CONTROL_SUM)
        working = [phase for phase in self.phases if phase.phase != IDLE]
        known = [phase.energy_j for phase in working if phase.energy_j is not None]
        is_known = bool(known) and len(known) == len(working)
        finite = [(loss, weight) for loss, weight in self.losses if math.isfinite(loss)]
        weight = sum(w for _, w in finite)
        return RoundRow(
            round_number=self.round.number,
            stage=self.round.stage,
            accuracy=scores.accuracy if scores else None,
            loss=scores.loss if scores else None,
            train_loss=sum(loss * w for loss, w in finite) / weight if weight else None,
            density=model.mask.below(layout.num_prunable).density,
            cohort=len(self.round.cohort),
            updates=self.accumulator.num_updates,
            dropouts=len(self.round.of(Standing.OUT)),
            stragglers=len(self.round.of(Standing.ASKED)) + len(self.round.of(Standing.SENDING)),
            late=self.late,
            stale=self.stale,
            rejected=self.rejected,
            upload_bytes=self.uploaded_bytes,
            upload_bound_bytes=round(self.uploaded_bound_bytes),
            download_bytes=download_bytes,
            energy_j=sum(known) if is_known else None,
            energy_uncertainty_j=sum(p.uncertainty_j or 0.0 for p in working) if is_known else None,
            duration_s=duration_s,
            empty_layers=sum(density == 0 for density in layers),
            min_layer_density=min(layers, default=1.0),
            union_density=current.mask.below(layout.num_prunable).density,
            control_sum=float(np.abs(controls).max(initial=0.0)) if controls is not None else None,
            alarms=alarms,
            resting=resting,
        )
