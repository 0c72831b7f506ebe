"""The coordinator: one loop that receives packets, lets the round decide, and sends what follows.

        wait for clients -> for each round: publish Task -> serve and fetch bodies -> aggregate
                            -> evaluate -> checkpoint -> report                       -> End

The loop is single-threaded and owns all state; time is read here and handed to what decides.
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from coordinator import board_profiles
from coordinator.admission import Admission
from coordinator.aggregate import Accumulator
from coordinator.commits import Commits
from coordinator.downlink import Downlink
from coordinator.evaluate import Evaluator, Scores
from coordinator.experiment import Experiment
from coordinator.journal import Checkpoint, save
from coordinator.ledger import Ledger, Opened
from coordinator.offers import Offers
from coordinator.open_round import OpenRound
from coordinator.overlap import Overlap
from coordinator.planner import Plan, Planner
from coordinator.reception import RETRY_S, Reception
from coordinator.report import RoundRow, RunFolder
from coordinator.robust import Robust
from coordinator.round import Round, Standing
from coordinator.uplink import Uplink
from protocol.artifact import Manifest
from protocol.errors import ConfigError
from protocol.layout import Vector
from protocol.messages import End, Update
from protocol.method import TRAIN, Global, Turn
from protocol.topics import HELLO, Topics
from protocol.transport import Transport

log = logging.getLogger(__name__)

TICK_S = 0.02
# While every device rests: how often it is looked whether one is well again.
REST_TICK_S = 1.0
# After the last round clients still report what their last upload cost.
FAREWELL_S = 1.0
# Within this time clients are back after a restart: twice the longest pause between their attempts.
RETURN_S = 30.0
# What waits is heard before a round; a flood does not keep it from opening.
CATCH_UP_S = 1.0
# Packets after which updates are made durable although more wait: one sync to disk serves many.
SETTLE_EVERY = 32


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
        ledger: Ledger | None = None,
    ) -> None:
        """Put the artifact on offer and listen.

        Without `admission` everybody is let in; without a ledger, a round under way dies with the process.
        """
        self._experiment, self._run, self._manifest = experiment, run, manifest
        self._transport, self._folder = transport, folder
        self._evaluator, self._show, self._clock, self._ledger = evaluator, show, clock, ledger
        self._before: Opened | None = None  # The round that was under way before a restart.
        self._overlap = Overlap(experiment.asynchronous)
        self._method = experiment.build_method()
        self._topics = Topics(experiment.broker.fleet)
        self._down = Downlink(transport, self._topics)
        self._up = Uplink(transport, self._topics)
        offered = self._down.offer(manifest.raw)
        instance = ledger.instance if ledger is not None else secrets.token_hex(8)
        self._offers = Offers(experiment, run, manifest, offered, initial, self._method, self._down, instance)
        for name in manifest.files:
            self._down.offer((artifact / name).read_bytes())
        self._admission = admission or Admission.open_house()
        profiles = board_profiles.read(experiment.cohort.profiles, manifest, experiment.training.batch_size)
        self._began_s = clock()  # By the clock, less what the run took before it was resumed.
        self._planner = Planner(experiment, profiles, lambda: self._clock() - self._began_s)
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
            ledger,
            self._planner.heard,
            self._planner.spent,
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
        if start is not None:
            self._planner.restore(self._folder.path, self._method.trains_dense)
        self._began_s = self._clock() - elapsed_s
        self._before = self._ledger.opened() if self._ledger is not None else None
        if first <= self._experiment.rounds and self._before is None:
            self._wait_for_clients()
        if start is None:
            self._durably(lambda: self._checkpoint(first, current, elapsed_s))
        for number in range(first, self._experiment.rounds + 1):
            if self._method.is_finished(current):
                self._folder.event("finished-early", round=number - 1)
                break
            opened_s = self._clock()
            current = self._one_round(number, current)
            elapsed_s += self._clock() - opened_s
            self._durably(partial(self._checkpoint, number + 1, current, elapsed_s))
            self._commits.tidy()
        for client_id in list(self._reception.fleet.present):
            self._reception.send(client_id, End(self._run))
        self._pump(lambda: False, FAREWELL_S)
        self._folder.event("run-ended", rounds=self._experiment.rounds)
        self._transport.publish(self._topics.of(HELLO), self._admission.hello(online=False), retain=True)
        return self._method.model(current, self._manifest.layout)

    def _checkpoint(self, next_round: int, current: Global, elapsed_s: float) -> None:
        commits = self._commits.last
        save(
            self._folder.path,
            Checkpoint(self._run, self._manifest.digest, next_round, current, elapsed_s, commits),
        )

    def _durably(self, write: Callable[[], None]) -> None:
        """Write, again and again until the disk takes it: a full one pauses the run and loses nothing."""
        for attempt in itertools.count():
            try:
                return write()
            except (OSError, sqlite3.Error) as error:
                if attempt == 0:
                    log.error("paused reason=the run folder cannot be written: %s", error)
                    self._folder.event("paused", reason=str(error))
            self._pump(lambda: False, RETRY_S)

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
        self._overlap.begin(turn, current.weights[layout.num_trainable :])
        busy = self._overlap.busy
        before = self._before if self._before is not None and self._before.number == number else None
        self._admission.sync()
        plan = Plan(before.cohort) if before is not None else self._plan(turn, current, busy)
        opened_s, cohort = self._clock(), plan.cohort
        quorum = max(1, math.ceil(self._experiment.cohort.quorum * len(cohort)))
        quorum = self._overlap.quorum(quorum, len(cohort))
        deadline_s = self._experiment.cohort.deadline_s
        round_ = Round(number, turn.stage, tuple(cohort), quorum, opened_s, deadline_s)
        fresh = [client_id for client_id in cohort if client_id not in busy]
        parts = {name: self._method.nested(current, share, layout) for name, share in plan.shares.items()}
        tasks = {**busy, **self._offers.tasks(turn, fresh, current, self._commits, plan.steps, parts)}
        self._reception.mask = current.mask
        self._reception.parts = tuple({part.digest: part for part in parts.values()}.values())
        upload_size = self._method.upload_size(turn, layout)
        open_ = OpenRound(
            round_,
            tasks.__getitem__,
            self._accumulator(upload_size[0]),
            upload_size,
            partial(self._weight, turn),
            partial(self._overlap.restate, number),
        )
        self._overlap.take_over(open_)
        received_before = self._folder.totals.download_bytes
        planned = {"steps": plan.steps, "shares": plan.shares, "resting": plan.resting}
        planned = {name: what for name, what in planned.items() if what}
        self._folder.event(
            "round-opened", round=number, stage=turn.stage, cohort=cohort, quorum=quorum, **planned
        )
        self._reception.open = open_
        if self._ledger is not None:
            if before is not None:
                self._reception.restore(self._ledger.accepted(number), self._folder.recorded)
            else:
                self._durably(partial(self._ledger.open, number, cohort, self._reception.fleet.trusted))
        self._reception.repeat_task()
        self._pump(lambda: round_.is_closed(self._clock()) and self._reception.is_settled, math.inf)
        self._overlap.hand_over(open_, tasks)
        next_global, alarms = self._close(open_, turn, current)
        self._offers.withdraw(tasks.values(), self._overlap.busy.values())
        scores = self._evaluate(number, next_global)
        row = open_.row(
            next_global,
            self._method.model(next_global, layout),
            layout,
            scores,
            self._folder.totals.download_bytes - received_before,
            self._clock() - opened_s,
            alarms,
            len(plan.resting),
        )
        self._folder.round(row)
        self._show(self._progress(open_, row))
        return next_global

    def _weight(self, turn: Turn, update: Update) -> int:
        fresh = self._planner.weigh(turn, update, self._method.weight(turn, update.num_examples))
        return self._overlap.weight(fresh, turn.number, update)

    def _plan(self, turn: Turn, current: Global, busy: Collection[str]) -> Plan:
        """Return whom to ask, once there is somebody who is well; the busy ones are asked already.

        After a restart all who were there get time to return.

        Raises:
            ConfigError: every device rests, and none will ever be well.
        """
        number, fleet, is_told = turn.number, self._reception.fleet, False
        self._catch_up()
        if self._before is not None:
            expected, self._before = set(self._before.present), None
            self._pump(lambda: expected.issubset(fleet.present), RETURN_S)
        if not fleet.trusted and not busy:
            log.warning("no client is there round=%d: waiting", number)
            self._folder.event("waiting", round=number)
            self._pump(lambda: bool(fleet.trusted), math.inf)
        density = 1.0 if self._method.trains_dense else self._density(current)
        while True:
            idle = {one: fleet.present[one] for one in fleet.trusted if one not in busy}
            asked = max(0, (self._experiment.cohort.per_round or len(fleet.trusted)) - len(busy))
            plan = self._planner.plan(turn, idle, asked, density)
            if plan.cohort or busy or not plan.resting:
                return replace(plan, cohort=sorted([*busy, *plan.cohort]))
            if plan.is_hopeless:
                reasons = "; ".join(f"{client_id}: {reason}" for client_id, reason in plan.resting.items())
                raise ConfigError(f"no device can ever be asked: {reasons}")
            if not is_told:
                log.warning("every device rests round=%d reasons=%s", number, plan.resting)
                self._folder.event("all-resting", round=number, resting=plan.resting)
                is_told = True
            self._pump(lambda: False, REST_TICK_S)

    def _catch_up(self) -> None:
        """Hear what came while the last model was evaluated: who has left, or is too hot, is not asked."""
        until_s = self._clock() + CATCH_UP_S
        while self._clock() < until_s and (packet := self._transport.receive(0.0)) is not None:
            self._reception.handle(packet)

    def _density(self, current: Global) -> float:
        return current.mask.below(self._manifest.layout.num_prunable).density

    def _accumulator(self, size: int) -> Accumulator | Robust:
        config = self._experiment.aggregation
        if config.rule == "mean":
            is_nested = self._experiment.cohort.least_density_share < 1
            return Accumulator(size, self._method.counts_coverage or is_nested)
        return Robust(size, config)

    def _close(self, open_: OpenRound, turn: Turn, current: Global) -> tuple[Global, int]:
        """End a round; return the next state and the number of alarms. Without updates all stays as it was."""
        round_, now_s = open_.round, self._clock()
        self._up.forget_others(self._overlap.busy)
        for client_id in [*round_.of(Standing.ASKED), *round_.of(Standing.SENDING)]:
            if client_id in self._overlap.busy:
                continue
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

    def _pump(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Handle packets until something holds, or for so long."""
        until_s, burst = self._clock() + timeout_s, 0
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
            burst = burst + 1 if packet is not None else 0
            if burst % SETTLE_EVERY == 0:
                self._reception.settle()
            now_s = self._clock()
            self._down.tick(now_s)
            self._up.tick(now_s)
