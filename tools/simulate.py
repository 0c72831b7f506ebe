"""A whole federation in one process over Loopback: the code of the real one, without a broker.

Each client is the real daemon in a thread of its own. Energy is not measured here: the process's
CPU time cannot be told apart by client. It may be modelled (tools/lab/boards.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from coordinator.evaluate import Evaluator
from coordinator.experiment import Experiment
from coordinator.report import RunFolder
from coordinator.service import Coordinator, Progress
from edge_client.config import ClientConfig
from edge_client.daemon import Daemon
from edge_client.energy.meter import Meter
from edge_client.energy.source import NoSource
from edge_client.kernels import library_path
from edge_client.link import Link
from edge_client.runtime import Backend, onnx_backend
from edge_client.spool import Spool
from edge_client.trust import Trust
from protocol import artifact as artifacts
from protocol.examples import count, load
from protocol.method import Global
from protocol.sparse import SparseVector
from protocol.topics import Topics
from protocol.transport import LoopbackHub
from tools.lab.boards import ModelledBoard

log = logging.getLogger(__name__)


def simulate(
    experiment: Experiment,
    clients: Mapping[str, Path],
    folder: Path,
    show: Callable[[Progress], None] = lambda progress: None,
    observe: Callable[[str, SparseVector, SparseVector], None] | None = None,
    backend: Backend | None = None,
    boards: Mapping[str, ModelledBoard] | None = None,
) -> Global:
    """Run an experiment with these clients (id -> data file); return the final model.

    The run folder and the clients' state are made under `folder`. `observe` is told of each model that a
    client has trained, and of what it uploads. `backend` runs the clients' steps instead of ONNX Runtime;
    `boards` pay for them, by client id.

    Raises:
        Exception: what a client's daemon raised; the run has ended then.
    """
    artifact = Path(experiment.artifact)
    manifest = artifacts.read(artifact)
    initial = artifacts.weights((artifact / artifacts.INITIAL).read_bytes(), manifest.layout)
    test = load(
        Path(experiment.data) / "test.npz",
        manifest.input_shape,
        manifest.num_classes,
        is_regression=manifest.loss == artifacts.MSE,
    )
    hub, topics = LoopbackHub(), Topics(experiment.broker.fleet)
    failures: list[Exception] = []

    def clock() -> float:
        # A coordinator waits for clients that are gone; those of a simulation do not come back.
        if failures:
            raise failures[0]
        return time.monotonic()

    def run(daemon: Daemon) -> None:
        try:
            daemon.run()
        except Exception as error:
            log.error("simulated client %s failed: %s", threading.current_thread().name, error)
            failures.append(error)

    coordinator = Coordinator(
        experiment,
        experiment.name,
        manifest,
        artifact,
        initial,
        hub.connect("coordinator"),
        RunFolder(folder, experiment),
        Evaluator(manifest, artifact, test.x, test.y, experiment.evaluation.threads),
        show,
        clock,
    )
    threads = []
    for client_id, data in clients.items():
        config = ClientConfig(
            client_id=client_id, data=str(data), state=str(folder / "state" / client_id), exit_after_run=True
        )
        spool = Spool(Path(config.state))
        meter, session, runs = Meter(NoSource()), spool.next_session(), backend
        if boards is not None:
            meter = boards[client_id].meter
            runs = boards[client_id].backend(backend or onnx_backend(config.runtime, library_path(), 1))
        trust = Trust.at(Path(config.state), session)
        link = Link(hub.connect(client_id), topics, client_id, trust)
        daemon = Daemon(
            config,
            link,
            meter,
            spool,
            session,
            count(data),
            library_path(),
            1,
            "simulated",
            observe=observe,
            backend=runs,
        )
        threads.append(threading.Thread(target=run, args=(daemon,), name=client_id, daemon=True))
        threads[-1].start()
    result = coordinator.run()
    for thread in threads:
        thread.join(timeout=30)
    return result
