"""What each device has spent, how it was, and what it costs: kept from its own reports. No I/O, no clock.

A phase without a figure is counted at the highest mean power that the device has had: a budget must
hold. A device that was asked and has not reported is counted as predicted, until its report replaces that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.cost_model import CostModel, Step
from coordinator.energy_cohort import DAY_S, Device
from coordinator.report import IDLE
from protocol.messages import Join

TRAIN = "train"
LAST_ROUNDS = 5
SPAN_S = 600.0  # What is spent within it is one entry, at its latest time: a day of short rounds has 144.
MOST_W = 1e5  # A rack. Infinity and what is no number are above it, too.


class Spent(Protocol):
    """What is read of a phase: of a message, or of a line of devices.csv."""

    @property
    def phase(self) -> str: ...  # noqa: D102  As in protocol.messages.Phase.
    @property
    def duration_s(self) -> float: ...  # noqa: D102
    @property
    def energy_j(self) -> float | None: ...  # noqa: D102
    @property
    def num_steps(self) -> int: ...  # noqa: D102
    @property
    def temperature_c(self) -> float | None: ...  # noqa: D102
    @property
    def throttling(self) -> str: ...  # noqa: D102
    @property
    def battery_percent(self) -> float | None: ...  # noqa: D102


@dataclass
class Account:
    """One device's."""

    device: Device
    model: CostModel = field(default_factory=CostModel)
    highest_w: float | None = None  # Of a phase's mean powers.
    # Joules of its last rounds but for training, by round: of the costliest, the next is foretold.
    others: dict[int, float] = field(default_factory=dict)
    pending: tuple[float, float] | None = None  # When it was asked, and the joules that were predicted.


class Accounts:
    """All devices', by client id."""

    def __init__(self, profiles: Mapping[str, tuple[Step, ...]] | None = None) -> None:
        """`profiles` are steps measured on boards alone, by the name of the device profile."""
        self._profiles = dict(profiles or {})
        self.by_client: dict[str, Account] = {}

    def join(self, message: Join, round_number: int, now_s: float) -> None:
        """A device has joined before this round, or tells again how it is."""
        account = self._account(message.client_id, round_number)
        account.model.profile = self._profiles.get(message.profile, ())
        account.device = replace(account.device, reports_joules=message.energy_scope not in ("", "none"))
        known = (message.battery_percent, message.temperature_c, message.throttling or None)
        if known != (None, None, None):
            self._see(account, now_s, message.battery_percent, message.temperature_c, message.throttling)

    def ask(self, client_id: str, round_number: int, predicted_j: float, now_s: float) -> None:
        """A device is asked: it is counted as predicted until it reports."""
        account = self._account(client_id, round_number)
        if account.pending is not None:  # It never reported of the last time: what was predicted stands.
            self._spend(account, *account.pending)
        account.pending = now_s, predicted_j
        account.device = replace(account.device, last_asked=round_number)

    def record(
        self, client_id: str, round_number: int, phases: Iterable[Spent], density: float, now_s: float
    ) -> None:
        """A device reports what it did, at a density of the weights that it trains.

        Phases with figures that no board can have are passed over: nothing that is sent may stop the run.
        """
        account = self._account(client_id, round_number)
        work = [phase for phase in phases if phase.phase != IDLE and _is_possible(phase)]
        if not work:
            return
        account.pending = None
        spent_j = 0.0
        other_j = account.others.get(round_number, 0.0)
        for phase in work:
            joules = self._joules(account, phase)
            spent_j += joules
            if phase.phase == TRAIN and phase.num_steps:
                step_j = None if phase.energy_j is None else phase.energy_j / phase.num_steps
                account.model.add(Step(density, phase.duration_s / phase.num_steps, step_j))
            else:
                other_j += joules
        account.others[round_number] = other_j
        for old in sorted(account.others)[:-LAST_ROUNDS]:
            del account.others[old]
        self._spend(account, now_s, spent_j)
        last = work[-1]
        hottest = max(
            (phase.temperature_c for phase in work if phase.temperature_c is not None), default=None
        )
        flags = sorted({flag for phase in work for flag in phase.throttling.split(",") if flag})
        self._see(account, now_s, last.battery_percent, hottest, ",".join(flags))

    def restore(
        self, client_id: str, round_number: int, phases: Sequence[Spent], density: float, at_s: float
    ) -> None:
        """A resumed run reads what a device did in a round that ended at `at_s`."""
        self.record(client_id, round_number, phases, density, at_s)
        account = self._account(client_id, round_number)
        account.device = replace(account.device, last_asked=round_number)

    def device(self, client_id: str, round_number: int, num_steps: int, density: float) -> Device:
        """Return what is known of a device before a round of so many steps."""
        account = self._account(client_id, round_number)
        spends = account.device.spends + ((account.pending,) if account.pending is not None else ())
        return replace(account.device, spends=spends, next_j=self.predicted_j(client_id, num_steps, density))

    def predicted_j(self, client_id: str, num_steps: int, density: float) -> float:
        """Return the joules of a round of so many steps; 0 where nothing is known."""
        account = self.by_client[client_id]
        return max(account.others.values(), default=0.0) + num_steps * (account.model.step_j(density) or 0.0)

    def _account(self, client_id: str, round_number: int) -> Account:
        if client_id not in self.by_client:
            self.by_client[client_id] = Account(
                Device(client_id, reports_joules=True, last_asked=round_number)
            )
        return self.by_client[client_id]

    def _joules(self, account: Account, phase: Spent) -> float:
        if phase.energy_j is None:
            return phase.duration_s * (account.highest_w or 0.0)
        if phase.duration_s > 0:
            account.highest_w = max(account.highest_w or 0.0, phase.energy_j / phase.duration_s)
        return phase.energy_j

    def _spend(self, account: Account, at_s: float, joules: float) -> None:
        kept = [spend for spend in account.device.spends if spend[0] > at_s - DAY_S]
        if kept and kept[-1][0] // SPAN_S == at_s // SPAN_S:
            latest_s, before_j = kept.pop()
            at_s, joules = max(at_s, latest_s), joules + before_j
        account.device = replace(account.device, spends=(*kept, (at_s, joules)))

    def _see(
        self,
        account: Account,
        now_s: float,
        battery: float | None,
        temperature_c: float | None,
        throttling: str,
    ) -> None:
        account.device = replace(
            account.device,
            seen_s=now_s,
            battery_percent=battery,
            temperature_c=temperature_c,
            throttling=throttling,
        )


def _is_possible(phase: Spent) -> bool:
    joules = 0.0 if phase.energy_j is None else phase.energy_j
    return 0 <= phase.duration_s <= DAY_S and 0 <= joules <= MOST_W * DAY_S
