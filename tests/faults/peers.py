"""Protocol clients: the client's own link, signatures and transport, with updates by a rule in place of training.

    with Fleet(folder, rounds=3, sizes=10_000) as fleet:   # over Loopback, or over brokers with urls
        fleet.start(); final = fleet.run()
        fleet.told()                                      # what the peers' receipts said

What a peer sends in a round follows from its number and the round, so that a run without faults over
Loopback tells what any other must end in, to the bit.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.admission import Admission
from coordinator.experiment import CohortConfig, Experiment
from coordinator.registry import Registry
from coordinator.report import RunFolder
from coordinator.service import Coordinator
from edge_client.link import Link, Superseded
from edge_client.trust import Trust
from protocol import artifact as artifacts
from protocol import codec, mqtt
from protocol.errors import TransportError
from protocol.identity import Key
from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.messages import End, Join, Leave, Phase, Receipt, Task, Training, Update
from protocol.method import Global
from protocol.sparse import Mask, SparseVector
from protocol.topics import STATE, Topics
from protocol.transport import LoopbackHub, Transport, Will
from tests.conftest import FLEET, USERS
from tests.faults.tally import Tally, tally

TOPICS, COORDINATOR = Topics(FLEET), Key.generate()
BIAS = 8
PHASES = [Phase("train", 0.0, 0.0, None, None, "none")]

log = logging.getLogger(__name__)


def manifest_of(layout: Layout) -> artifacts.Manifest:
    fields = {"layout": layout.to_json(), "model": "m", "input_shape": [1], "num_classes": 2}
    rest = {"statistic_momentum": {}, "operators": [], "versions": {}, "files": {}}
    return artifacts.parse(artifacts.dump({**fields, **rest}))


class Peer:
    """One client in a thread of its own."""

    def __init__(
        self,
        client_id: str,
        connect: Callable[[str, Will], Transport],
        work: Callable[[Task], bytes],
        session: int = 1,
        fetches: bool = False,
        obeys: bytes | None = COORDINATOR.public,
    ) -> None:
        """`work` returns the body of a task's update; with `fetches` the weights are downloaded first."""
        self.client_id, self._work, self._fetches = client_id, work, fetches
        self.told: set[tuple[int, str]] = set()
        self.verdicts: list[Receipt] = []
        self.problem: BaseException | None = None
        self.abandoned = 0  # Deliveries or downloads that were given up.
        state, trust = TOPICS.of(STATE, client_id), Trust(Key.generate(), session, obeys)
        will = Will(state, lambda nth: trust.seal(state, Leave(client_id, session, nth)))
        self.transport = connect(client_id, will)
        self.link = Link(self.transport, TOPICS, client_id, trust)
        self.session = session
        self.thread = threading.Thread(target=self._run, name=client_id, daemon=True)

    def start(self) -> None:
        self.link.announce(Join(self.client_id, self.session, 10, "peer", "none", "peer", "none"))
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                order = self.link.next_order(60)
                if isinstance(order, End):
                    return
                if order is not None:
                    self._serve(order)
        except TransportError as error:
            self.problem = error  # The transport was closed by the test.
        except BaseException as error:
            self.problem = error
            raise

    def _serve(self, task: Task) -> None:
        try:
            if self._fetches:
                self.link.fetch(task.blobs["weights"], 1 << 30)
            ref = self.link.offer(self._work(task))
            update = Update(
                self.client_id,
                self.session,
                task.run,
                task.round_number,
                task.stage,
                10,
                ref,
                0.5,
                1,
                PHASES,
                1,
            )
            receipt = self.link.deliver(update)
        except Superseded:
            return
        except TransportError as error:
            log.warning("given up client=%s reason=%s", self.client_id, error)
            self.abandoned += 1
            return
        self.verdicts.append(receipt)
        if receipt.verdict in ("accepted", "duplicate"):
            self.told.add((task.round_number, self.client_id))


def by_rule(number: int, size: int) -> Callable[[Task], bytes]:
    """Return the work of peer `number`: values that no other peer or round has, incompressible."""

    def work(task: Task) -> bytes:
        rng = np.random.default_rng([number, task.round_number])
        vector = SparseVector(Mask.full(size), rng.normal(0, 0.01, size).astype(np.float32))
        return codec.encode(vector, size - BIAS, "f32")

    return work


class Fleet:
    """A coordinator in this process and its peers; each connects where its url says, None: over Loopback."""

    def __init__(
        self,
        folder: Path,
        size: int = 1000,
        rounds: int = 1,
        peers: int = 3,
        url: str | None = None,
        peer_url: str | None = None,
        deadline_s: float = 60.0,
        quarantine_after: int = 1000,
        fetches: bool = False,
    ) -> None:
        self.folder, self.size = folder, size
        self._hub, self._url, self._peer_url = LoopbackHub(), url, peer_url or url
        self._stack = contextlib.ExitStack()
        self.layout = Layout.of([("weight", (size - BIAS,), PRUNABLE), ("bias", (BIAS,), DENSE)])
        self.experiment = Experiment(
            artifact="",
            data="",
            rounds=rounds,
            method={"name": "fedavg"},
            training=Training(1, 1, 0.1),
            cohort=CohortConfig(clients=peers, deadline_s=deadline_s, join_timeout_s=30),
        )
        self.experiment.broker.fleet = FLEET
        self.experiment.aggregation.quarantine_after = quarantine_after
        self.peers = [self.peer(f"peer-{n:03}", by_rule(n, size), fetches) for n in range(peers)]

    def connect(self, client_id: str, will: Will | None = None) -> Transport:
        """Connect as a device, or as the coordinator."""
        user = "coordinator" if client_id.startswith("coord") else "device"
        url = self._url if user == "coordinator" else self._peer_url
        if url is None:
            made: Transport = self._hub.connect(client_id, will)
        else:
            made = mqtt.connect(url, client_id, user, USERS[user], will, timeout_s=60)
        self._stack.callback(made.close)
        return made

    def peer(self, client_id: str, work: Callable[[Task], bytes], fetches: bool = False) -> Peer:
        return Peer(client_id, self.connect, work, fetches=fetches)

    def run(self) -> Global:
        """Run all rounds with the peers; return the final model."""
        coordinator = Coordinator(
            self.experiment,
            "run",
            manifest_of(self.layout),
            Path(),
            np.random.default_rng(0).normal(0, 0.1, self.size).astype(np.float32),
            self.connect("coordinator"),
            RunFolder(self.folder, self.experiment),
            None,
            admission=Admission(COORDINATOR, 1, Registry(), Registry()),
        )
        for peer in self.peers:
            peer.start()
        final = coordinator.run()
        for peer in self.peers:
            peer.thread.join(30)
        return final

    def tally(self) -> Tally:
        """What was lost or counted twice."""
        return tally(self.folder, {one for peer in self.peers for one in peer.told})

    def __enter__(self) -> Fleet:
        """Everything is connected already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect all."""
        self._stack.close()


def undisturbed(folder: Path, **facts: int) -> np.ndarray:
    """Return the weights in which a run without faults ends."""
    with Fleet(folder, **facts) as fleet:
        return fleet.run().weights
