"""The coordinator: one loop that receives packets, lets the round decide, and sends what follows.

        wait for clients -> for each round: publish Task -> serve and fetch bodies -> aggregate
                            -> evaluate -> checkpoint -> report                       -> End

The loop is single-threaded and owns all state; time is read here and handed to what decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.admission import Admission
from coordinator.aggregate import Accumulator
from coordinator.cohort import choose
from coordinator.commits import Commits
from coordinator.evaluate import Evaluator, Scores
from coordinator.experiment import Experiment
from coordinator.journal import Checkpoint, save
from coordinator.offers import Offers
from coordinator.reception import OpenRound, Reception
from coordinator.report import IDLE, RoundRow, RunFolder
from coordinator.robust import Robust
from coordinator.round import Round, Standing
from coordinator.transfers import Downlink, Uplink
from protocol.artifact import Manifest
from protocol.errors import ConfigError
from protocol.layout import Vector
from protocol.messages import End
from protocol.method import CONTROL_SUM, TRAIN, Global, Turn
from protocol.pruning import densities
from protocol.topics import HELLO, Topics
from protocol.transport import Transport

log = logging.getLogger(__name__)

TICK_S = 0.02
# After the last round clients still report what their last upload cost.
FAREWELL_S = 1.0


@dataclass(frozen=True)
class Progress:
    """What a display shows while a run goes on."""

    round_number: int
    rounds: int
    stage: str
    done: int
    cohort: int
    row: RoundRow | None  # Of the round that has just closed; None while one is open.


class Coordinator:
    """One run of an experiment."""

    def __init__(
        self,
        experiment: Experiment,
        run: str,
        manifest: Manifest,
        artifact: Path,
        initial: Vector,
        transport: Transport,
        folder: RunFolder,
        evaluator: Evaluator | None,
        show: Callable[[Progress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
        admission: Admission | None = None,
    ) -> None:
        """Put the artifact on offer and listen. Without `admission` everybody is let in."""
        self._experiment, self._run, self._manifest = experiment, run, manifest
        self._transport, self._folder = transport, folder
        self._evaluator, self._show, self._clock = evaluator, show, clock
        self._method = experiment.build_method()
        self._topics = Topics(experiment.broker.fleet)
        self._down = Downlink(transport, self._topics)
        self._up = Uplink(transport, self._topics)
        offered = self._down.offer(manifest.raw)
        self._offers = Offers(experiment, run, manifest, offered, initial, self._method, self._down)
        for name in manifest.files:
            self._down.offer((artifact / name).read_bytes())
        self._admission = admission or Admission.open_house()
        self._reception = Reception(
            run,
            transport,
            self._topics,
            self._down,
            self._up,
            folder,
            manifest.layout,
            experiment.aggregation.quarantine_after,
            clock,
            lambda open_: show(self._progress(open_)),
            self._admission,
        )
        self._connections = transport.connections
        for topic_filter in self._topics.coordinator_filters():
            transport.subscribe(topic_filter)
        transport.publish(self._topics.of(HELLO), self._admission.hello(online=True), retain=True)

    # The run

    def run(self, start: Checkpoint | None = None) -> Global:
        """Run all rounds, or those after a checkpoint; return the final model, as it is evaluated.

        Raises:
            ConfigError: too few clients joined in time.
        """
        current = start.current if start else self._method.begin(self._manifest.layout, self._offers.initial)
        self._commits = Commits(self._folder.path, start.averaged if start else {})
        first = start.next_round if start else self._method.first_round
        elapsed_s = start.duration_s if start else 0.0
        if first <= self._experiment.rounds:
            self._wait_for_clients()
        for number in range(first, self._experiment.rounds + 1):
            opened_s = self._clock()
            current = self._one_round(number, current)
            elapsed_s += self._clock() - opened_s
            save(
                self._folder.path,
                Checkpoint(
                    self._run, self._manifest.digest, number + 1, current, elapsed_s, self._commits.last
                ),
            )
            self._commits.tidy()
        for client_id in list(self._reception.fleet.present):
            self._reception.send(client_id, End(self._run))
        self._pump(lambda: False, FAREWELL_S)
        self._folder.event("run-ended", rounds=self._experiment.rounds)
        self._transport.publish(self._topics.of(HELLO), self._admission.hello(online=False), retain=True)
        return self._method.model(current, self._manifest.layout)

    def _wait_for_clients(self) -> None:
        cohort = self._experiment.cohort
        self._pump(lambda: len(self._reception.fleet.present) >= cohort.clients, cohort.join_timeout_s)
        present = sorted(self._reception.fleet.present)
        if len(present) < cohort.clients:
            raise ConfigError(
                f"{len(present)} of {cohort.clients} clients joined within {cohort.join_timeout_s:.0f} s "
                f"({', '.join(present) or 'none'}). Start the others with: sparsefleet client --config "
                "client.toml; or lower cohort.clients"
            )

    def _one_round(self, number: int, current: Global) -> Global:
        """Ask a cohort, collect, aggregate, evaluate, report."""
        layout = self._manifest.layout
        training = self._experiment.training_in(number)
        population = self._experiment.cohort.clients
        turn = Turn(number, self._method.stage(number), self._experiment.seed, training, population)
        opened_s = self._clock()
        self._admission.sync()
        trusted = self._reception.fleet.trusted
        asked = self._experiment.cohort.per_round or len(trusted)
        cohort = choose(trusted, asked, self._experiment.seed, number)
        quorum = max(1, math.ceil(self._experiment.cohort.quorum * len(cohort)))
        deadline_s = self._experiment.cohort.deadline_s
        round_ = Round(number, turn.stage, tuple(cohort), quorum, opened_s, deadline_s)
        tasks = self._offers.tasks(turn, cohort, current, self._commits)
        self._reception.mask = current.mask
        upload_size = self._method.upload_size(turn, layout)
        open_ = OpenRound(
            round_,
            tasks.__getitem__,
            self._accumulator(upload_size[0]),
            upload_size,
            lambda num_examples: self._method.weight(turn, num_examples),
        )
        received_before = self._folder.totals.download_bytes
        self._folder.event("round-opened", round=number, stage=turn.stage, cohort=cohort, quorum=quorum)
        self._reception.open = open_
        self._reception.repeat_task()
        self._pump(lambda: round_.is_closed(self._clock()), math.inf)
        next_global, alarms = self._close(open_, turn, current)
        self._offers.withdraw(tasks)
        scores = self._evaluate(number, next_global)
        row = self._row(open_, next_global, scores, received_before, alarms)
        self._folder.round(row)
        self._show(self._progress(open_, row))
        return next_global

    def _accumulator(self, size: int) -> Accumulator | Robust:
        config = self._experiment.aggregation
        if config.rule == "mean":
            return Accumulator(size, self._method.counts_coverage)
        return Robust(size, config)

    def _close(self, open_: OpenRound, turn: Turn, current: Global) -> tuple[Global, int]:
        """End a round; return the next state and the number of alarms. Without updates all stays as it was."""
        round_, now_s = open_.round, self._clock()
        self._up.forget()
        for client_id in [*round_.of(Standing.ASKED), *round_.of(Standing.SENDING)]:
            standing = round_.standing[client_id].value
            self._folder.event("client-missing", round=round_.number, client=client_id, standing=standing)
        num_updates = open_.accumulator.num_updates
        is_overdue = now_s >= round_.opened_s + round_.deadline_s
        cause = "quorum" if num_updates >= round_.quorum else "deadline" if is_overdue else "nobody-left"
        self._folder.event("round-closed", round=round_.number, updates=num_updates, cause=cause)
        if num_updates == 0:
            log.warning("round without updates round=%d: the global model stays as it was", round_.number)
            return current, 0
        layout = self._manifest.layout
        following = self._method.aggregate(turn, current, open_.accumulator.mean(), layout)
        found = [self._method.alarm(following, layout)]
        if self._method.commits and turn.stage == TRAIN:
            found += self._commit(open_, following)
        alarms = [text for text in found if text]
        for text in alarms:
            log.error("alarm round=%d %s", round_.number, text)
            self._folder.event("alarm", round=round_.number, reason=text)
        return following, len(alarms)

    def _commit(self, open_: OpenRound, following: Global) -> list[str]:
        """Note who was averaged; return what clients say that they follow, where it is not what we know."""
        said = {client_id: open_.announced[client_id].committed for client_id in open_.accepted}
        known = self._commits.last
        wrong = [
            f"the state of {client_id} follows round {committed}, its last averaged round is {known.get(client_id)}: "
            "its state folder was lost, or is an old copy"
            for client_id, committed in said.items()
            if committed != known.get(client_id)
        ]
        mean = self._offers.encode(following.vector, following) if self._method.keeps_means else None
        self._commits.close(open_.round.number, said, mean)
        return wrong

    def _progress(self, open_: OpenRound, row: RoundRow | None = None) -> Progress:
        round_ = open_.round
        done, cohort = len(round_.of(Standing.DONE)), len(round_.cohort)
        return Progress(round_.number, self._experiment.rounds, round_.stage, done, cohort, row)

    def _evaluate(self, number: int, current: Global) -> Scores | None:
        is_due = number % self._experiment.evaluation.every == 0 or number == self._experiment.rounds
        if self._evaluator is None or not is_due:
            return None
        return self._evaluator.scores(self._method.model(current, self._manifest.layout).weights)

    def _row(
        self, open_: OpenRound, current: Global, scores: Scores | None, received_before: int, alarms: int
    ) -> RoundRow:
        round_, layout = open_.round, self._manifest.layout
        model = self._method.model(current, layout)
        layers = densities(model.mask, layout).values()
        controls = current.state.get(CONTROL_SUM)
        working = [phase for phase in open_.phases if phase.phase != IDLE]
        known = [phase.energy_j for phase in working if phase.energy_j is not None]
        is_known = bool(known) and len(known) == len(working)
        finite = [(loss, weight) for loss, weight in open_.losses if math.isfinite(loss)]
        weight = sum(w for _, w in finite)
        return RoundRow(
            round_number=round_.number,
            stage=round_.stage,
            accuracy=scores.accuracy if scores else None,
            loss=scores.loss if scores else None,
            train_loss=sum(loss * w for loss, w in finite) / weight if weight else None,
            density=model.mask.below(layout.num_prunable).density,
            cohort=len(round_.cohort),
            updates=open_.accumulator.num_updates,
            dropouts=len(round_.of(Standing.OUT)),
            stragglers=len(round_.of(Standing.ASKED)) + len(round_.of(Standing.SENDING)),
            rejected=open_.rejected,
            upload_bytes=open_.uploaded_bytes,
            upload_bound_bytes=round(open_.uploaded_bound_bytes),
            download_bytes=self._folder.totals.download_bytes - received_before,
            energy_j=sum(known) if is_known else None,
            energy_uncertainty_j=sum(p.uncertainty_j or 0.0 for p in working) if is_known else None,
            duration_s=self._clock() - round_.opened_s,
            empty_layers=sum(density == 0 for density in layers),
            min_layer_density=min(layers, default=1.0),
            union_density=current.mask.below(layout.num_prunable).density,
            control_sum=float(np.abs(controls).max(initial=0.0)) if controls is not None else None,
            alarms=alarms,
        )

    def _pump(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Handle packets until something holds, or for so long."""
        until_s = self._clock() + timeout_s
        while not is_done() and self._clock() < until_s:
            packet = self._transport.receive(TICK_S)
            if self._transport.connections != self._connections:
                self._connections = self._transport.connections
                self._transport.publish(
                    self._topics.of(HELLO), self._admission.hello(online=True), retain=True
                )
                self._reception.repeat_task()
            if packet is not None:
                self._reception.handle(packet)
            self._reception.review()
            now_s = self._clock()
            self._down.tick(now_s)
            self._up.tick(now_s)
