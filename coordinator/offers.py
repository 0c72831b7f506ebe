"""What a round puts on offer, and what it asks of each client.

A body that is the initial model drawn from a seed does not travel; a fixed mask is a body of its own,
which travels once; means stay on offer for those who were averaged in them and have been away since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from coordinator.commits import Commits
from coordinator.downlink import Downlink
from coordinator.experiment import Experiment
from protocol import codec
from protocol.artifact import Manifest
from protocol.layout import Vector
from protocol.messages import BlobRef, Seeded, Task
from protocol.method import Global, Method, Turn
from protocol.seeded import initial as draw
from protocol.sparse import Mask, SparseVector

WORTH_IT = 0.95  # A change must be so much smaller, since both bodies are kept on offer.


class _Bodies(NamedTuple):
    """What a round's tasks say of its bodies: fields of Task."""

    blobs: dict[str, BlobRef]
    seeded: list[str]
    bases: dict[str, str]
    stored: dict[str, int]


class Offers:
    """Encodes bodies, puts them on the downlink, and makes the tasks that name them."""

    def __init__(
        self,
        experiment: Experiment,
        run: str,
        manifest: Manifest,
        artifact: BlobRef,
        initial: Vector,
        method: Method,
        down: Downlink,
        instance: str,
    ) -> None:
        """Draw the initial model where it comes from a seed; else it is the artifact's."""
        self._experiment, self._run, self._layout = experiment, run, manifest.layout
        self._instance = instance
        self._artifact, self._method, self._down = artifact, method, down
        self._settings = {key: value for key, value in experiment.method.items() if key != "name"}
        self.initial, self._seeded = initial, None
        self._last_mask: Mask | None = None
        if experiment.initial.source == "seed":
            self.initial = draw(manifest.layout, experiment.seed, experiment.initial.gain)
            digest = hashlib.sha256(self.initial.astype("<f4").tobytes()).hexdigest()
            self._seeded = Seeded(experiment.seed, experiment.initial.gain, digest)

    def tasks(
        self,
        turn: Turn,
        cohort: list[str],
        current: Global,
        commits: Commits,
        steps: Mapping[str, int],
        parts: Mapping[str, Mask],
    ) -> dict[str, Task]:
        """Put the round's bodies on offer; return each client's task.

        Tasks differ only in when the coordinator has averaged whom, in `steps`: the most that a client makes, and
        in whose body has only a part of the global mask.
        """
        whole = self._publish(turn, current)
        distinct = {part.digest: part for part in parts.values()}
        of_part = {name: self._publish(turn, replace(current, mask=part)) for name, part in distinct.items()}
        task = Task(
            run=self._run,
            round_number=turn.number,
            method=self._method.name,
            settings=self._settings,
            stage=turn.stage,
            training=turn.training,
            seed=turn.seed,
            deadline_s=self._experiment.cohort.deadline_s,
            artifact=self._artifact,
            values=self._experiment.wire.upload_values,
            side=self._experiment.wire.side_values,
            initial=self._seeded,
            instance=self._instance,
            **whole._asdict(),
        )
        self._last_mask = current.mask
        made = {}
        for client_id in cohort:
            bodies = of_part[parts[client_id].digest] if client_id in parts else whole
            averaged, blobs = commits.last.get(client_id), dict(bodies.blobs)
            if averaged is not None and self._method.keeps_means:
                blobs["mean"] = self._down.offer(commits.mean(averaged))
            local_steps = steps.get(client_id, 0)
            made[client_id] = msgspec.structs.replace(
                task, averaged=averaged, local_steps=local_steps, **{**bodies._asdict(), "blobs": blobs}
            )
        return made

    def withdraw(self, tasks: Iterable[Task], in_use: Iterable[Task]) -> None:
        """Take a closed round's bodies off the shelf; the mask stays for who has not seen it."""
        needed = {ref.digest for task in in_use for ref in task.blobs.values()}
        for task in tasks:
            digests = {ref.digest for name, ref in task.blobs.items() if name != "mask"}
            self._down.withdraw(digests - needed)

    def encode(self, vector: SparseVector, current: Global, base: Mask | None = None) -> bytes:
        """Return a body of the downlink, as a change of `base` where that is smaller."""
        known = (current.mask.digest,) if self._is_fixed(current) else ()
        wire, num_prunable = self._experiment.wire, self._layout.num_prunable
        return codec.encode(
            vector,
            num_prunable,
            wire.download_values,
            known,
            base=base,
            ends=self._layout.ends_of(num_prunable),
            side=wire.side_values,
        )

    def _publish(self, turn: Turn, current: Global) -> _Bodies:
        """Put them on offer.

        Where the mask moves, a body comes in full and as a change of the last round's mask: who was there
        takes the change.
        """
        found = _Bodies({}, [], {}, {})
        blobs, seeded, bases, stored = found
        last = self._last_mask
        if self._is_fixed(current):
            bare = SparseVector(current.mask, np.zeros(current.mask.nnz, np.float32))
            num_prunable = self._layout.num_prunable
            ends = self._layout.ends_of(num_prunable)
            blobs["mask"] = self._down.offer(codec.encode(bare, num_prunable, "f16", ends=ends))
        for name, vector in self._method.broadcast(turn, current, self.initial, self._layout).items():
            stored[name] = vector.mask.nnz
            if self._seeded is not None and np.array_equal(vector.values, self.initial):
                seeded.append(name)
            else:
                full = self.encode(vector, current)
                blobs[name] = self._down.offer(full)
                if last is None or self._is_fixed(current) or last.size != vector.mask.size:
                    continue
                change = self.encode(vector, current, last)
                if len(change) < WORTH_IT * len(full):
                    blobs[f"{name}.change"], bases[name] = self._down.offer(change), last.digest
        return found

    def _is_fixed(self, current: Global) -> bool:
        return self._method.fixed_mask and current.mask.nnz < self._layout.size
