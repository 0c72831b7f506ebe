"""Who is at work over the end of a round: the bookkeeping of asynchronous rounds (asynchronous.py).

    begin -> take over -> ... the round ... -> hand over -> begin of the next

With synchronous rounds, and in rounds of preparation, nobody is.
"""

from __future__ import annotations

from coordinator.asynchronous import AsynchronousConfig, restated
from coordinator.open_round import OpenRound
from coordinator.round import Standing
from protocol.layout import Vector
from protocol.messages import Task, Update
from protocol.method import TRAIN, Turn
from protocol.sparse import SparseVector


class Overlap:
    """What an open round has of earlier ones."""

    def __init__(self, config: AsynchronousConfig) -> None:
        """Nobody is at work."""
        self._config = config
        self.is_open = False  # Whether the present round is asynchronous.
        self.busy: dict[str, Task] = {}  # Who goes on with an earlier round's task.
        self._arriving: dict[str, Update] = {}  # Of these: whose update is already on its way.
        self._statistics: dict[int, Vector] = {}  # Round -> running statistics of its model.

    def begin(self, turn: Turn, statistics: Vector) -> None:
        """Note the running statistics that a round begins with."""
        self.is_open = bool(self._config.buffer) and turn.stage == TRAIN
        if self.is_open:
            self._statistics[turn.number] = statistics
            self._statistics.pop(turn.number - self._config.max_staleness - 1, None)
        else:
            self.busy, self._arriving = {}, {}

    def quorum(self, synchronous: int, cohort: int) -> int:
        """Return how many updates close the round."""
        return min(self._config.buffer, cohort) if self.is_open else synchronous

    def take_over(self, open_: OpenRound) -> None:
        """Put into a round what has come of earlier ones."""
        open_.round.is_asynchronous = self.is_open
        open_.round.since.update((client_id, task.round_number) for client_id, task in self.busy.items())
        for client_id, update in self._arriving.items():
            open_.round.announce(client_id, update.round_number, open_.round.opened_s)
            open_.announced[client_id] = update

    def hand_over(self, open_: OpenRound, tasks: dict[str, Task]) -> None:
        """Note who goes on at the end of a round: whoever will not be too stale in the next one."""
        oldest = open_.round.number + 1 - self._config.max_staleness
        working = [*open_.round.of(Standing.ASKED), *open_.round.of(Standing.SENDING)]
        stay = [one for one in working if self.is_open and tasks[one].round_number >= oldest]
        self.busy = {client_id: tasks[client_id] for client_id in stay}
        self._arriving = {one: update for one, update in open_.announced.items() if one in self.busy}

    def weight(self, fresh: int, number: int, update: Update) -> int:
        """Return the weight of an update in round `number`."""
        return self._config.weight(fresh, number - update.round_number) if self.is_open else fresh

    def restate(self, number: int, update: Update, vector: SparseVector) -> SparseVector:
        """Return an update as if it had been begun in round `number`."""
        if update.round_number == number:
            return vector
        return restated(vector, self._statistics[update.round_number], self._statistics[number])
