"""One run from an experiment to its report: opens what the coordinator needs, and closes it.

Used by the command line, the demo and the tests alike.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator import final_model, journal
from coordinator.admission import HOME_VARIABLE, Admission, default_home
from coordinator.broker import COORDINATOR_USER, EmbeddedBroker
from coordinator.certificates import CA, own_names, server_files
from coordinator.evaluate import Evaluator
from coordinator.experiment import BrokerConfig, Experiment
from coordinator.ledger import Ledger
from coordinator.report import IDLE, ROUNDS, SUMMARY, RunFolder, read_csv, rests
from coordinator.service import Coordinator, Progress
from device_profiles.memory import peak_rss_bytes
from protocol import artifact as artifacts
from protocol import mqtt
from protocol.broker_url import EVERYWHERE, is_loopback, is_loopback_host, local_name
from protocol.errors import ConfigError
from protocol.examples import load
from protocol.identity import KEY
from protocol.tls import Tls, demand
from protocol.topics import HELLO, Topics
from protocol.transport import Transport, Will

DEVICE_USER = "device"
PASSWORD_VARIABLE = "SPARSEFLEET_PASSWORD"  # noqa: S105  The variable's name is no secret.

IDENTITY = "identity"  # In a run folder: what belongs to the run only.


def launch(
    experiment: Experiment,
    out: Path,
    resume: bool = False,
    show: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[str, str], None] = lambda url, password: None,
) -> dict[str, Any]:
    """Run an experiment and return its summary, which is also written to the run folder.

    `ready` is told the broker's url, and the password for clients where the broker is ours.

    Raises:
        UserError: the artifact, the test data, the broker or the clients are not what they must be.
    """
    begin_s = time.monotonic()
    artifact = Path(experiment.artifact)
    manifest = artifacts.read(artifact)
    initial = artifacts.weights((artifact / artifacts.INITIAL).read_bytes(), manifest.layout)
    test = load(
        Path(experiment.data) / "test.npz",
        manifest.input_shape,
        manifest.num_classes,
        is_regression=manifest.loss == artifacts.MSE,
    )
    start = journal.restore(out, manifest.digest) if resume else None
    if start is None and ((out / ROUNDS).exists() or (out / journal.CHECKPOINT).exists()):
        raise ConfigError(
            f"{out} holds a run already; choose another --out, or continue it with --resume {out}"
        )
    run = start.run if start else out.name
    with ExitStack() as stack:
        out.mkdir(parents=True, exist_ok=True)
        ledger = stack.enter_context(closing(Ledger(out)))
        admission = stack.enter_context(closing(_admission(experiment, out)))
        transport = _connect(experiment, stack, ready, admission)
        accepted = ledger.accepted_clients(start.next_round) if start else set()
        folder = RunFolder(out, experiment, start.next_round if start else None, accepted)
        folder.event("run-resumed" if start else "run-started", run=run, artifact=manifest.digest)
        evaluator = Evaluator(manifest, artifact, test.x, test.y, experiment.evaluation.threads)
        coordinator = Coordinator(
            experiment,
            run,
            manifest,
            artifact,
            initial,
            transport,
            folder,
            evaluator,
            show,
            admission=admission,
            ledger=ledger,
        )
        final = coordinator.run(start)
    model, _ = final_model.write(out, manifest, artifact, final.weights)
    summary = _summary(experiment, folder, time.monotonic() - begin_s)
    summary["density"] = final.mask.below(manifest.layout.num_prunable).density
    summary["model"] = str(model)
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _admission(experiment: Experiment, out: Path) -> Admission:
    """Open the door: to everybody only where nobody but this machine can knock, or where it is said."""
    security, broker = experiment.security, experiment.broker
    is_open = security.unsigned == "allow"
    if security.unsigned == "auto":
        is_open = is_loopback(broker.url) if broker.url else is_loopback_host(broker.bind)
    home = _home(experiment)
    is_chosen = bool(security.home) or HOME_VARIABLE in os.environ
    if is_open and not is_chosen and not (home / KEY).exists():
        home = out / IDENTITY  # Nobody was ever paired here: a trial leaves nothing behind.
    return Admission.at(home, broker.fleet, out / IDENTITY / "guests.db" if is_open else None)


def _home(experiment: Experiment) -> Path:
    home = experiment.security.home
    return Path(home) if home else default_home()


def authority(experiment: Experiment) -> Path:
    """Where the certificate of our own authority lies, if there is one: what devices set as [broker] ca."""
    return _home(experiment) / "ca" / CA


def _connect(
    experiment: Experiment, stack: ExitStack, ready: Callable[[str, str], None], admission: Admission
) -> Transport:
    """Connect to the broker of the experiment; without a url start one of our own."""
    broker = experiment.broker
    topics = Topics(broker.fleet)
    will = Will(topics.of(HELLO), admission.hello(online=False))
    password = os.environ.get(PASSWORD_VARIABLE, broker.password)
    url, username, client_password = broker.url, broker.username, ""
    if not url:
        password = secrets.token_urlsafe(16)
        client_password = _client_password(broker)
        username = COORDINATOR_USER  # The one that may do everything at our own broker.
        users = {username: password, DEVICE_USER: client_password}
        certificate = None
        if broker.has_tls:
            certificate = server_files(_home(experiment), own_names())
        embedded = EmbeddedBroker(users, broker.fleet, broker.bind, broker.listens_on, certificate)
        url = stack.enter_context(embedded).url
    demand(url, broker.plaintext)
    tls = Tls(broker.ca, broker.certificate, broker.key)
    if not tls.ca and (own := authority(experiment)).exists():
        tls = replace(tls, ca=str(own))
    transport = mqtt.connect(url, "coordinator", username, password, will, tls=tls)
    stack.callback(transport.close)
    ready(_for_devices(url, broker), client_password)
    return transport


def _for_devices(url: str, broker: BrokerConfig) -> str:
    """Where devices find it: an embedded broker on all addresses by this machine's name."""
    if broker.url or broker.bind not in EVERYWHERE:
        return url
    return f"{url.partition('://')[0]}://{local_name()}:{url.rpartition(':')[2]}"


def _client_password(broker: BrokerConfig) -> str:
    """What devices log in with at the embedded broker: given, or made for this run."""
    if broker.client_password:
        return broker.client_password
    if not is_loopback_host(broker.bind):
        raise ConfigError(
            f"broker.bind = {broker.bind!r} lets other machines in: set broker.client_password, which devices need"
        )
    return secrets.token_urlsafe(16)


def _summary(experiment: Experiment, folder: RunFolder, seconds: float) -> dict[str, Any]:
    rounds = read_csv(folder.path / ROUNDS)
    evaluated = [row for row in rounds if row["loss"]]
    accuracy = evaluated[-1]["accuracy"] if evaluated else ""
    totals = folder.totals
    return {
        "run": folder.path.name,
        "method": str(experiment.method["name"]),
        "rounds": experiment.rounds,
        "accuracy": float(accuracy) if accuracy else None,
        "loss": float(evaluated[-1]["loss"]) if evaluated else None,
        "upload_bytes": totals.upload_bytes,
        "download_bytes": totals.download_bytes,
        "control_sum_max": max(
            (float(row["control_sum"]) for row in rounds if row["control_sum"]), default=None
        ),
        "alarms": sum(int(row["alarms"]) for row in rounds),
        "resting": rests(folder.path),
        "energy_j": totals.energy_j,
        "energy_uncertainty_j": sum(
            phase.uncertainty_j for name, phase in totals.phases.items() if name != IDLE
        ),
        "energy_source": ", ".join(sorted(totals.sources)),
        "phases": {
            name: {
                "seconds": total.duration_s,
                "energy_j": total.energy_j,
                "uncertainty_j": total.uncertainty_j,
            }
            for name, total in totals.phases.items()
        },
        "client_peak_rss_bytes": totals.peak_rss_bytes,
        "coordinator_peak_rss_bytes": peak_rss_bytes(),
        "seconds": seconds,
        "report": str(folder.path),
    }
