"""How many clients one coordinator bears: real connections and messages, with recorded updates in place of training.

A broker, the coordinator and this process run on one machine. Each client has a connection and a key of its own and
answers its task with one of a few bodies that were coded before, each of the model's size and the density
asked for. What is measured: updates folded in per second, from the first task to the evaluated model, and the
coordinator's peak memory. Training costs nothing here, so all clients answer at once: the worst case.
"""

from __future__ import annotations

import json
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.report import ROUNDS, SUMMARY, read_csv
from edge_client.trust import Trust
from protocol import artifact as artifacts
from protocol import codec
from protocol.blob_store import BlobStore
from protocol.blobs import UPLOAD_CHUNK_BYTES
from protocol.config import dumps
from protocol.errors import ConfigError
from protocol.identity import Key
from protocol.layout import Layout
from protocol.messages import BlobRef, End, Join, Receipt, Task, Update, Want
from protocol.sparse import Mask, SparseVector
from protocol.topics import BLOB_UP, FETCH, STATE, TASK, UPDATE, Topics

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
NUM_BODIES = 16
TOPICS = Topics("fleet")
EXAMPLES = 100


@dataclass(frozen=True)
class Load:
    """What one run showed."""

    clients: int
    rounds: int
    body_bytes: int
    updates_per_s: float  # Of the slowest round.
    coordinator_peak_rss_bytes: int
    accepted: int


class Peer:
    """One client: a connection, a key, and the next body."""

    def __init__(self, client_id: str, port: int, bodies: list[BlobRef], store: BlobStore) -> None:
        self.client_id, self._bodies, self._store = client_id, bodies, store
        self._trust = Trust(Key.generate(), 1)
        self.accepted, self.is_over = 0, False
        self.mqtt = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv311)
        self.mqtt.on_connect = self._joined
        self.mqtt.on_message = self._heard
        self.mqtt.connect("127.0.0.1", port, keepalive=600)

    def _joined(self, *_: object) -> None:
        self.mqtt.subscribe([(topic, 1) for topic in TOPICS.client_filters(self.client_id)])
        join = Join(
            self.client_id, 1, EXAMPLES, "recorded", "none", "bench", "none", public_key=self._trust.public
        )
        self._say(STATE, join)

    def _heard(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        address = TOPICS.parse(message.topic)
        if address is None:
            return
        said = self._trust.open(message.topic, bytes(message.payload))
        if address.kind == TASK and isinstance(said, Task):
            self._answer(said)
        elif address.kind == TASK and isinstance(said, Receipt):
            self.accepted += said.verdict == "accepted"
        elif address.kind == TASK and isinstance(said, End):
            self.is_over = True
        elif address.kind == FETCH and isinstance(said, Want):
            topic = TOPICS.of(BLOB_UP, self.client_id, said.digest)
            for index in said.chunks:
                self.mqtt.publish(topic, self._store.chunk(said.digest, index), 1)

    def _answer(self, task: Task) -> None:
        body = self._bodies[hash((self.client_id, task.round_number)) % len(self._bodies)]
        number, stage = task.round_number, task.stage
        self._say(UPDATE, Update(self.client_id, 1, task.run, number, stage, EXAMPLES, body, 0.5, 1, [], 1))

    def _say(self, kind: str, message: Join | Update) -> None:
        topic = TOPICS.of(kind, self.client_id)
        self.mqtt.publish(topic, self._trust.seal(topic, message), 1, retain=kind == STATE)


def measure(clients: int, rounds: int, artifact: Path, density: float, data: Path) -> Load:
    """Run a federation of `clients` connections; `data` is a folder with test.npz.

    Raises:
        ConfigError: no mosquitto, or too few files may be open.
    """
    if not Path(MOSQUITTO).is_file():
        raise ConfigError("mosquitto is not installed: apt-get install mosquitto")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * clients:
        raise ConfigError(
            f"{clients} connections need more than the {hard} files that may be open: ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    manifest = artifacts.read(artifact)
    store = BlobStore(1 << 30, chunk_bytes=UPLOAD_CHUNK_BYTES)
    bodies = [store.put(_body(manifest.layout, density, n)) for n in range(NUM_BODIES)]
    with tempfile.TemporaryDirectory() as name, _mosquitto(Path(name)) as port:
        folder = Path(name)
        experiment = folder / "experiment.toml"
        experiment.write_text(dumps(_experiment(clients, rounds, artifact, density, data, port)))
        command = [
            sys.executable,
            "-m",
            "tools.cli",
            "run",
            str(experiment),
            "--json",
            "--out",
            str(folder / "run"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as coordinator:
            peers = [Peer(f"peer-{n:05}", port, bodies, store) for n in range(clients)]
            _serve(peers, coordinator)
        if coordinator.returncode != 0:
            raise ConfigError(
                f"the coordinator failed (exit code {coordinator.returncode}); its reason is above"
            )
        rows = read_csv(folder / "run" / ROUNDS)
        summary: dict[str, Any] = json.loads((folder / "run" / SUMMARY).read_text())
    slowest = min(int(row["updates"]) / float(row["duration_s"]) for row in rows)
    accepted = sum(peer.accepted for peer in peers)
    peak = int(summary["coordinator_peak_rss_bytes"])
    return Load(clients, rounds, bodies[0].size, slowest, peak, accepted)


def line(found: Load) -> str:
    """Return the figures as text."""
    return (
        f"{found.clients} clients, bodies of {found.body_bytes / 1e3:.0f} kB: {found.updates_per_s:.0f} updates/s "
        f"in the slowest of {found.rounds} rounds, {found.accepted} accepted; the coordinator's peak "
        f"{found.coordinator_peak_rss_bytes / 1e6:.0f} MB"
    )


def _body(layout: Layout, density: float, seed: int) -> bytes:
    size, num_prunable = layout.size, layout.num_prunable
    rng = np.random.default_rng(seed)
    stored = np.sort(rng.choice(num_prunable, round(density * num_prunable), replace=False))
    mask = Mask(np.concatenate([stored, np.arange(num_prunable, size)]).astype(np.int32), size)
    values = rng.normal(0, 1e-3, mask.nnz).astype(np.float32)
    return codec.encode(SparseVector(mask, values), num_prunable, "f16", ends=layout.ends_of(num_prunable))


def _experiment(
    clients: int, rounds: int, artifact: Path, density: float, data: Path, port: int
) -> dict[str, Any]:
    return {
        "artifact": str(artifact.resolve()),
        "data": str(data.resolve()),
        "rounds": rounds,
        "method": {"name": "topk", "density": density},
        "training": {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.05},
        "cohort": {"clients": clients, "deadline_s": 600, "join_timeout_s": 300},
        "wire": {"upload_values": "f16"},
        "broker": {"url": f"mqtt://127.0.0.1:{port}"},
    }


@contextmanager
def _mosquitto(folder: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\nmax_inflight_messages 100\n"
    )
    with subprocess.Popen(
        [MOSQUITTO, "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL
    ) as broker:
        try:
            until_s = time.monotonic() + 10
            while time.monotonic() < until_s:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            broker.terminate()


def _serve(peers: list[Peer], coordinator: subprocess.Popen[bytes]) -> None:
    """One loop for all connections, until the coordinator has ended."""
    selector = selectors.DefaultSelector()
    for peer in peers:
        selector.register(peer.mqtt.socket(), selectors.EVENT_READ, peer)  # type: ignore[arg-type]
    writing: set[Peer] = set()
    looked_s = time.monotonic()
    while coordinator.poll() is None:
        for key, events in selector.select(0.2):
            if events & selectors.EVENT_READ:
                key.data.mqtt.loop_read()
            if events & selectors.EVENT_WRITE:
                key.data.mqtt.loop_write()
        for peer in peers:
            wants = peer.mqtt.want_write()
            if wants != (peer in writing) and peer.mqtt.socket() is not None:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants else 0)
                selector.modify(peer.mqtt.socket(), events, peer)  # type: ignore[arg-type]
                (writing.add if wants else writing.discard)(peer)
        if time.monotonic() - looked_s > 5:
            looked_s = time.monotonic()
            for peer in peers:
                peer.mqtt.loop_misc()
