"""The client: joins, waits for a task, does it, uploads, and again.

        IDLE --Task--> receive -> decode -> train -> encode -> upload --Receipt--> IDLE
          ^                |                                     |
          +--- Refusal ----+        a newer Task drops what is under way

What a task costs is measured phase by phase. Whatever goes wrong with a task is said to the
coordinator (Refusal) and the client goes on: only its own configuration can stop it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt

from device_profiles.memory import available_bytes, peak_rss_bytes
from edge_client import break_even, notify
from edge_client.config import ClientConfig
from edge_client.downloads import Downloads
from edge_client.energy.conditions import Seen
from edge_client.energy.meter import IDLE, Meter
from edge_client.energy.power_mode import power_mode
from edge_client.limits import Budget
from edge_client.link import Link, Superseded
from edge_client.memory import afford, plan
from edge_client.ort import PORTABLE
from edge_client.outbox import Outbox, Parcel
from edge_client.runtime import COMPRESSED, FULL, GRAPHS, Backend, Runtime, files_of, onnx_backend
from edge_client.session import Trainer
from edge_client.spool import Spool
from protocol import codec, commit
from protocol.artifact import MSE, Manifest
from protocol.blobs import UPLOAD_CHUNK_BYTES, ref_of
from protocol.errors import ProtocolError, TransportError, UserError
from protocol.examples import Examples, load
from protocol.messages import Cost, End, Join, Refusal, Task, Update
from protocol.method import Method, Turn
from protocol.methods import build
from protocol.seeded import generator
from protocol.sparse import Mask, SparseVector

log = logging.getLogger(__name__)

# A waiting board looks so often how it is. It tells at once that it is slowed or no longer so,
WATCH_S = 1.0
ANNOUNCE_S = 60.0  # and its temperature and charge so often.


class Daemon:
    """One client of a fleet."""

    def __init__(
        self,
        config: ClientConfig,
        link: Link,
        meter: Meter,
        spool: Spool,
        session: int,
        num_examples: int,
        library: Path,
        threads: int,
        profile: str,
        budget_mb: int = 0,
        observe: Callable[[str, SparseVector, SparseVector], None] | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Load the op library. `budget_mb` is what training may take; 0: all that is available.

        For simulations: `observe` is told of each model that was trained here, and of what is uploaded;
        `backend` replaces the configuration's runtime.

        Raises:
            RuntimeMissing: it is missing or unusable.
            DataError: the state folder's calibration is damaged.
        """
        self._config, self._link, self._meter = config, link, meter
        self._backend = backend or onnx_backend(
            config.runtime, library, threads, config.limits.step_time_s, config.spin
        )
        self._budget_mb, self._profile, self._observe = budget_mb, profile, observe
        self._data = Path(config.data)
        self._num_examples = num_examples
        self._kernels = break_even.apply(library, Path(config.state))
        self._spool, self._session = spool, session
        self._examples: Examples | None = None
        self._runtime: tuple[tuple[str, str], Runtime] | None = None  # Artifact and graph; the runtime.
        self._downloads = Downloads(link, spool)
        self._outbox = Outbox(Path(config.state), spool)
        self._last: Parcel | None = None  # The update that was made last,
        self._is_begun = False  # by this process or, until its first task, by the one before it.
        self._known_upstream: set[str] = set()  # The last upload's mask, if the coordinator keeps it.

    def run(self) -> None:
        """Serve until told to leave (`exit_after_run`), for ever otherwise."""
        idle = self._meter.measure_idle(self._config.meter.idle_s)
        self._join = Join(
            client_id=self._config.client_id,
            session=self._session,
            num_examples=self._num_examples,
            runtime=self._backend.name,
            kernels=self._kernels,
            profile=self._profile,
            energy_source=self._meter.source.about.name,
            energy_scope=self._meter.source.about.scope,
            idle_w=idle.power_w if idle else None,
            idle_uncertainty_w=idle.uncertainty_w if idle else None,
            power_mode=power_mode(),
        )
        self._announce()
        log.info(
            "joined client=%s session=%d examples=%d",
            self._config.client_id,
            self._session,
            self._num_examples,
        )
        while True:
            order = self._wait()
            if isinstance(order, End):
                log.info("run ended run=%s", order.run)
                if self._config.exit_after_run:
                    return
                self._meter.take()
            else:
                self._serve(order)

    def _wait(self) -> Task | End:
        """Return the next order; what waiting costs goes with the task's other phases."""
        notify.status("joined, waiting for a task")
        with self._meter.phase(IDLE):
            while (order := self._link.next_order(min(WATCH_S, ANNOUNCE_S))) is None:
                seen, is_due = self._meter.seen_now(), time.monotonic() >= self._announced_s + ANNOUNCE_S
                if ",".join(seen.throttling) != self._join.throttling or (is_due and seen != Seen()):
                    self._announce()
        return order

    def _announce(self) -> None:
        """Say who is here, and how the board is where it can tell."""
        seen = self._meter.seen_now()
        self._join = msgspec.structs.replace(
            self._join,
            temperature_c=seen.temperature_c,
            throttling=",".join(seen.throttling),
            battery_percent=seen.battery_percent,
        )
        self._link.announce(self._join)
        self._announced_s = time.monotonic()

    def _serve(self, task: Task) -> None:
        """Do one task, whatever happens."""
        notify.status(f"{task.run}: round {task.round_number}, {task.stage}")
        try:
            if not self._is_begun:
                self._last, self._is_begun = self._outbox.last(), True
            # A task that was done already: this client or the coordinator was restarted meanwhile.
            if self._last is None or _essence(self._last.task) != _essence(task):
                self._last = None
                self._last = self._work(task)
            self._deliver(self._last)
        except Superseded:
            log.info("task dropped for a newer one round=%d", task.round_number)
        except (UserError, ProtocolError, MemoryError, OSError, ValueError) as error:
            log.warning("task refused round=%d reason=%s", task.round_number, error)
            reason = str(error)[:1000]
            self._link.say(Refusal(self._config.client_id, task.run, task.round_number, reason))
        except TransportError as error:
            log.warning("task abandoned round=%d reason=%s", task.round_number, error)
        finally:
            self._meter.take()

    def _work(self, task: Task) -> Parcel:
        """Receive, decode, train, encode; return the update, durable."""
        method, turn = build(task.method, task.settings), _turn(task)
        memory = self._spool.memory(_memory_name(task))
        saved = self._saved(method)
        wire = self._link.transport
        with self._meter.phase("receive") as span:
            before = wire.received_bytes, wire.sent_bytes
            manifest = self._downloads.manifest(task)
            inputs = method.inputs(turn, memory)
            # No body is fetched in vain; a board that is too small would not live to decode it.
            least = manifest.layout.size - manifest.layout.num_prunable
            self._afford(task, method, manifest, max([least, *(task.stored.get(name, 0) for name in inputs)]))
            self._downloads.artifact(task, manifest, files_of(self._config.runtime, saved))
            bodies = self._downloads.bodies(task, inputs, manifest)
            span.received_bytes, span.sent_bytes = (
                wire.received_bytes - before[0],
                wire.sent_bytes - before[1],
            )
        with self._meter.phase("decode"):
            received = self._downloads.vectors(task, inputs, bodies, manifest)
        self._afford(task, method, manifest, max((v.mask.nnz for v in received.values()), default=0))
        with self._meter.phase("train") as span:
            trainer = self._trainer(task, method, manifest, saved)
            uploaded = method.client(turn, received, trainer, memory)
            span.num_steps, span.num_examples = trainer.num_steps, trainer.num_examples
            if math.isnan(trainer.loss):  # No local epoch: it only looked for a mask.
                span.name = "prune"
        if self._observe is not None and trainer.local is not None:
            self._observe(self._config.client_id, trainer.local, uploaded)
        with self._meter.phase("encode"):
            known = {*self._downloads.fixed, *self._known_upstream}
            base = received["weights"].mask if "weights" in received else None
            body = self._encode(task, method, uploaded, manifest, known, base)
            names = codec.describe(body)["mask"]
            is_plain = names is None or names in self._downloads.fixed
            plain = b"" if is_plain else self._encode(task, method, uploaded, manifest, known=set())
            self._downloads.remember(base)
        log.info(
            "trained round=%d stage=%s steps=%d loss=%.4f",
            task.round_number,
            task.stage,
            trainer.num_steps,
            trainer.loss,
        )
        update = Update(
            client_id=self._config.client_id,
            session=self._session,
            run=task.run,
            round_number=task.round_number,
            stage=task.stage,
            num_examples=self._num_examples,
            body=ref_of(body, UPLOAD_CHUNK_BYTES),
            loss=trainer.loss,
            num_steps=trainer.num_steps,
            phases=self._meter.take(),
            peak_rss_bytes=peak_rss_bytes(),
            committed=commit.committed(memory),
        )
        parcel = Parcel(task, update, body, plain, uploaded.mask.digest)
        self._keep(parcel, memory)
        return parcel

    def _keep(self, parcel: Parcel, memory: dict[str, npt.NDArray[Any]]) -> None:
        """Make the update durable. One that leaves nothing behind on the device may do without.

        Raises:
            OSError: the disk is full, and the method's memory must not fall behind.
        """
        name = _memory_name(parcel.task)
        try:
            self._outbox.keep(parcel, name, memory)
        except OSError as error:
            if memory:
                raise
            log.warning("the update is kept in memory only reason=%s", error)

    def _deliver(self, parcel: Parcel) -> None:
        """Announce the update and serve its chunks until the coordinator's receipt."""
        update, task = parcel.update, parcel.task
        with self._meter.phase("upload") as span:
            wire = self._link.transport
            before = wire.received_bytes, wire.sent_bytes
            self._link.offer(parcel.body)
            receipt = self._link.deliver(update)
            if receipt.verdict == "unknown-mask" and parcel.plain:
                self._known_upstream.clear()
                update = msgspec.structs.replace(update, body=self._link.offer(parcel.plain))
                receipt = self._link.deliver(update)
            span.received_bytes, span.sent_bytes = (
                wire.received_bytes - before[0],
                wire.sent_bytes - before[1],
            )
        log.info("receipt round=%d verdict=%s %s", task.round_number, receipt.verdict, receipt.reason)
        if receipt.verdict in ("accepted", "duplicate"):
            self._known_upstream = {parcel.mask} if receipt.mask_kept else set()
            phases = self._meter.take()
            self._link.say(Cost(self._config.client_id, task.run, task.round_number, phases))

    def _saved(self, method: Method) -> str:
        """How activations wait: as configured, or compressed where the method must prune them."""
        saved = self._config.saved_activations
        return COMPRESSED if method.prunes_activations and saved == FULL else saved

    def _afford(self, task: Task, method: Method, manifest: Manifest, nnz: int) -> None:
        """Refuse a task that would not fit, before it takes memory."""
        if self._config.runtime != PORTABLE:
            return  # The training build's Module keeps copies of its own, which nobody has counted.
        graph, floats = GRAPHS[self._saved(method)], method.device_floats
        nnz = manifest.layout.size if method.trains_dense else nnz
        planned = plan(manifest, nnz, task.training.batch_size, self._num_examples, graph, floats)
        if planned is None:
            log.warning("memory unknown reason=the artifact was exported by an older version")
        available = available_bytes()
        afford(planned, min(available, self._budget_mb * 10**6) if self._budget_mb else available)

    def _encode(
        self,
        task: Task,
        method: Method,
        vector: SparseVector,
        manifest: Manifest,
        known: set[str],
        base: Mask | None = None,
    ) -> bytes:
        _, num_prunable = method.upload_size(_turn(task), manifest.layout)
        ends = manifest.layout.ends_of(num_prunable)
        return codec.encode(vector, num_prunable, task.values, known, base=base, ends=ends, side=task.side)

    def _trainer(self, task: Task, method: Method, manifest: Manifest, saved: str) -> Trainer:
        """Open the runtime and load the examples, unless they are those of the last task."""
        if self._runtime is None or self._runtime[0] != (task.artifact.digest, saved):
            folder = self._spool.artifact_folder(task.artifact.digest)
            runtime = self._backend.open(manifest, folder, saved)
            self._examples = load(
                self._data, manifest.input_shape, manifest.num_classes, is_regression=manifest.loss == MSE
            )
            self._runtime = (task.artifact.digest, saved), runtime
        assert self._examples is not None
        rng = generator(task.seed, self._config.client_id, task.round_number)
        _, num_prunable = method.upload_size(_turn(task), manifest.layout)

        def as_sent(upload: SparseVector) -> SparseVector:
            ends = manifest.layout.ends_of(num_prunable)
            return codec.as_received(upload, num_prunable, task.values, ends=ends, side=task.side)

        keeps_local = self._observe is not None
        budget = Budget(self._config.limits, self._meter.spent_j)
        return Trainer(
            manifest,
            self._runtime[1],
            self._examples,
            task.training,
            rng,
            as_sent,
            keeps_local,
            task.local_steps,
            budget.check,
        )


def _essence(task: Task) -> Task:
    """The task without what a restarted coordinator may say otherwise: changes are the same bodies again."""
    blobs = {name: ref for name, ref in task.blobs.items() if not name.endswith(".change")}
    return msgspec.structs.replace(task, blobs=blobs, bases={}, local_steps=0)


def _turn(task: Task) -> Turn:
    """What the method is told of the task."""
    return Turn(task.round_number, task.stage, task.seed, task.training, averaged=task.averaged)


def _memory_name(task: Task) -> str:
    """What a method keeps belongs to one run of one model with one set of settings.

    Not to the run's name alone: a second run of that name would find the mask of the first.
    """
    settings = sorted(task.settings.items())
    text = repr((task.instance, task.artifact.digest, task.method, settings, task.seed))
    return f"{task.run}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
