"""Who is asked in a round, for how many local steps, and what their updates weigh.

Between the experiment's settings, the pure decisions (cohort, energy_cohort, pace) and the accounts. Time
is that of the run: it stands still while the coordinator is stopped.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator import cohort, energy_cohort, pace
from coordinator.accounts import Accounts
from coordinator.cost_model import Step
from coordinator.energy_cohort import Choice, Limits
from coordinator.experiment import Experiment
from coordinator.report import DEVICES, ROUNDS, DeviceRow, parse_device_row, read_csv
from protocol.examples import num_batches
from protocol.messages import Join, Phase, Training, Update
from protocol.method import TRAIN, Turn

log = logging.getLogger(__name__)

# Of the method's density, for slow boards. Few, since each has bodies of its own on the way down.
SHARES = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Plan:
    """One round's."""

    cohort: list[str]
    resting: dict[str, str] = field(default_factory=dict)  # Who rests, and why.
    steps: dict[str, int] = field(default_factory=dict)  # Of those with fewer than their epochs have.
    shares: dict[str, float] = field(
        default_factory=dict
    )  # Of the density, of those that train a part of it.
    is_hopeless: bool = False  # All rest, and none will ever be well.


class Planner:
    """Plans the rounds of one run."""

    def __init__(
        self, experiment: Experiment, profiles: Mapping[str, tuple[Step, ...]], now: Callable[[], float]
    ) -> None:
        """`now` is the run's time in seconds."""
        self._experiment, self._config, self._now = experiment, experiment.cohort, now
        self.accounts = Accounts(profiles)
        self._round_number, self._density = 0, 1.0
        self._shares: dict[str, float] = {}  # Of each device, when it was last asked.
        self._scopes: set[str] = set()
        config = self._config
        self._limits = Limits(
            config.joules_per_day or math.inf,
            config.battery_floor_percent,
            config.temperature_ceiling_c or math.inf,
            config.rest_s,
        )

    def heard(self, message: Join) -> None:
        """A client has joined, or tells how it is."""
        self.accounts.join(message, self._round_number, self._now())
        if self._config.choose == "energy" and message.energy_scope not in self._scopes:
            self._scopes.add(message.energy_scope)
            if len(self._scopes) > 1:
                log.warning("joules of scopes %s do not compare, yet the least spent are asked", self._scopes)

    def spent(self, client_id: str, round_number: int, phases: Sequence[Phase]) -> float:
        """A client has reported what it did; return the density of the weights that it trained."""
        density = self._density * self._shares.get(client_id, 1.0)
        self.accounts.record(client_id, round_number, phases, density, self._now())
        return density

    def plan(self, turn: Turn, able: Mapping[str, Join], count: int, density: float) -> Plan:
        """Return the round's plan: `count` of the `able`; nobody, where all rest.

        `density` is that of the weights that clients will train.
        """
        self._round_number, self._density = turn.number, density
        full = {name: full_steps(join.num_examples, turn.training) for name, join in able.items()}
        steps, shares = dict(full), dict.fromkeys(full, 1.0)
        if self._is_paced(turn):
            paced = {name: self._pace(name, full[name], density) for name in full}
            shares = {name: share for name, (share, _) in paced.items()}
            steps = {name: count for name, (_, count) in paced.items()}
        densities = {name: density * share for name, share in shares.items()}
        choice = self._choose(turn.number, count, steps, densities)
        self._shares.update((name, shares[name]) for name in choice.asked)
        for name in choice.asked:
            predicted_j = self.accounts.predicted_j(name, steps[name], densities[name])
            self.accounts.ask(name, turn.number, predicted_j, self._now())
        return Plan(
            list(choice.asked),
            {name: rest.reason for name, rest in choice.resting.items()},
            {name: steps[name] for name in choice.asked if steps[name] < full[name]},
            {name: shares[name] for name in choice.asked if shares[name] < 1},
            is_hopeless=bool(able) and len(choice.resting) == len(able) and math.isinf(choice.until_s),
        )

    def weigh(self, turn: Turn, update: Update, plain: int) -> int:
        """Return an update's weight; `plain` is the method's.

        It follows from the update alone, so that a resumed round weighs alike. Who claims fewer steps than
        anybody is asked for is taken at those.
        """
        if not self._is_paced(turn):
            return plain
        full = full_steps(update.num_examples, turn.training)
        made = min(full, max(update.num_steps, pace.least_steps(full)))
        return pace.weight(plain, full, made, turn.training.momentum)

    def restore(self, folder: Path, trains_dense: bool) -> None:
        """Read what devices have done in this run so far, those of a round that was broken off included."""
        ended_s, density = 0.0, 1.0
        rows: dict[int, dict[str, list[DeviceRow]]] = defaultdict(lambda: defaultdict(list))
        for line in read_csv(folder / DEVICES):
            row = parse_device_row(line)
            rows[row.round_number][row.client_id].append(row)
        for line in read_csv(folder / ROUNDS):
            ended_s += float(line["duration_s"])
            number = int(line["round_number"])
            for client_id, phases in rows.pop(number, {}).items():
                trained = phases[0].density or density  # A folder of an older version does not say.
                self.accounts.restore(client_id, number, phases, trained, ended_s)
            density = 1.0 if trains_dense else float(line["union_density"] or 1.0)
        for number, broken_off in sorted(rows.items()):
            for client_id, phases in broken_off.items():
                self.accounts.restore(client_id, number, phases, phases[0].density or density, ended_s)

    def _pace(self, client_id: str, full: int, density: float) -> tuple[float, int]:
        """Return the share of the density and the steps that fit: weights are given up before steps are."""
        model, target_s = self.accounts.by_client[client_id].model, self._config.train_target_s
        shares = [share for share in SHARES if share >= self._config.least_density_share]
        step_s = model.step_s(density)
        if step_s == model.step_s(density * shares[-1]) and step_s is not None:
            # Of one density only, nothing is known of others but that twice of it takes at most twice as long.
            known = self._shares.get(client_id, 1.0)
            may_grow = 2 * full * step_s <= target_s
            shares = [share for share in shares if share <= (2 * known if may_grow else known)][:2]
        for share in shares:
            steps = pace.local_steps(full, model.step_s(density * share), target_s)
            if steps == full:
                break
        return share, steps

    def _is_paced(self, turn: Turn) -> bool:
        return turn.stage == TRAIN and self._config.train_target_s > 0

    def _choose(
        self, number: int, count: int, steps: Mapping[str, int], densities: Mapping[str, float]
    ) -> Choice:
        seed = self._experiment.seed
        if self._config.choose == "random":
            return Choice(tuple(cohort.choose(steps, count, seed, number)), {})
        devices = [self.accounts.device(name, number, steps[name], densities[name]) for name in steps]
        return energy_cohort.choose(devices, count, self._limits, seed, number, self._now())


def full_steps(num_examples: int, training: Training) -> int:
    """Return how many local steps the epochs have."""
    return training.local_epochs * num_batches(num_examples, training.batch_size)
