"""sparsefleet demo: the real system on this machine. Sparse beside dense, on real handwritten digits.

Exports a small CNN, splits scikit-learn's digits among client processes, starts a broker, and runs
FedPaI (shared scores, density 0.1) and dense FedAvg on the same split. Nothing is simulated: the
clients are the daemons that boards run, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coordinator.experiment import BrokerConfig, CohortConfig, Experiment, WireConfig
from coordinator.launch import PASSWORD_VARIABLE, launch
from edge_client.kernels import library_path
from export.export import export_model
from export.models import DEFAULT_INPUT_SHAPE
from protocol.config import dumps
from protocol.messages import Setting, Training
from tools.progress import display, joules, size
from tools.split import split

MODEL = "cnn"
METHODS: dict[str, dict[str, Setting]] = {
    "dense": {"name": "fedavg"},
    "sparse": {"name": "fedpai", "density": 0.1, "masks": "shared"},
}
TRAINING = Training(local_epochs=2, batch_size=32, learning_rate=0.05, momentum=0.9)
STOP_S = 10.0
FLEET = "demo"  # Not one whose devices were paired here.


def demo(out: Path, num_clients: int, rounds: int, as_json: bool) -> int:
    """Run the demo; return the exit code."""
    begin_s = time.monotonic()
    out = out / time.strftime("%Y%m%d-%H%M%S")

    def say(text: str) -> None:
        if not as_json:
            print(text, file=sys.stderr, flush=True)

    say(
        f"exporting {MODEL} for sparse training, and splitting 1,797 handwritten digits among {num_clients} clients"
    )
    artifact, data = out / "artifact", out / "data"
    exported = export_model(MODEL, DEFAULT_INPUT_SHAPE[MODEL], 10, artifact, library_path())
    say(f"loss and gradients equal PyTorch's to {exported.worst_difference:.0e}")
    split(source="digits", out=data, clients=num_clients, how="dirichlet", alpha=1.0, seed=0)
    summaries = [_one_run(out, name, num_clients, rounds, as_json) for name in METHODS]
    seconds = time.monotonic() - begin_s
    if as_json:
        print(json.dumps(_result(out, seconds, summaries)))
    else:
        _print(out, seconds, summaries)
    return 0


def _one_run(out: Path, name: str, num_clients: int, rounds: int, is_quiet: bool) -> dict[str, Any]:
    """One federation: fresh clients, so that their peak memory is this run's."""
    sparse = METHODS[name]["name"] != "fedavg"
    experiment = Experiment(
        artifact=str(out / "artifact"),
        data=str(out / "data"),
        rounds=rounds,
        method=METHODS[name],
        training=TRAINING,
        cohort=CohortConfig(clients=num_clients, deadline_s=60.0, join_timeout_s=60.0),
        name=name,
        wire=WireConfig("f16", "f16") if sparse else WireConfig(),
        broker=BrokerConfig(port=0, fleet=FLEET),
    )
    clients: list[subprocess.Popen[bytes]] = []
    try:
        with display(name, is_quiet) as show:
            return launch(
                experiment,
                out / name,
                show=show,
                ready=lambda url, password: clients.extend(
                    _start_clients(out, name, num_clients, url, password)
                ),
            )
    finally:
        _stop(clients)


def _start_clients(
    out: Path, name: str, count: int, url: str, password: str
) -> list[subprocess.Popen[bytes]]:
    clients = []
    for number in range(count):
        client_id = f"client-{number:03}"
        home = out / name / "clients"
        home.mkdir(parents=True, exist_ok=True)
        config = home / f"{client_id}.toml"
        config.write_text(
            dumps(
                {
                    "client_id": client_id,
                    "data": str((out / "data" / f"{client_id}.npz").resolve()),
                    "state": client_id,
                    "threads": 1,
                    # Several clients share this machine: each may count only its own share.
                    "energy": "auto-process",
                    "exit_after_run": True,
                    "meter": {"keep_samples_mb": 5},
                    "broker": {"url": url, "fleet": FLEET},
                }
            )
        )
        with (home / f"{client_id}.log").open("wb") as log:
            clients.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tools.cli", "-v", "client", "--config", str(config)],
                    env={**os.environ, PASSWORD_VARIABLE: password},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    return clients


def _stop(clients: list[subprocess.Popen[bytes]]) -> None:
    """Clients leave by themselves when the run ends; whoever has not is told to."""
    for client in clients:
        try:
            client.wait(STOP_S)
        except subprocess.TimeoutExpired:
            client.terminate()
    for client in clients:
        try:
            client.wait(STOP_S)
        except subprocess.TimeoutExpired:
            client.kill()


def _result(out: Path, seconds: float, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    keys = (
        "method",
        "density",
        "rounds",
        "accuracy",
        "upload_bytes",
        "download_bytes",
        "energy_j",
        "energy_uncertainty_j",
        "energy_source",
        "client_peak_rss_bytes",
        "coordinator_peak_rss_bytes",
        "phases",
    )
    return {
        "seconds": seconds,
        "report": str(out),
        "runs": [{key: summary[key] for key in keys} for summary in summaries],
    }


def _print(out: Path, seconds: float, summaries: list[dict[str, Any]]) -> None:
    """One table: what each run reached and cost, and the ratio."""
    dense, sparse = summaries
    table = Table(
        "", f"dense {dense['method']}", f"{sparse['method']} at density {sparse['density']:.2f}", "ratio"
    )

    def row(title: str, key: str, shown: Any) -> None:
        a, b = dense[key], sparse[key]
        table.add_row(title, shown(a), shown(b), f"{a / b:.1f}x" if a and b else "-")

    row("test accuracy", "accuracy", lambda value: f"{100 * value:.1f}%")
    row("bytes up, all clients", "upload_bytes", size)
    row("bytes down, all clients", "download_bytes", size)
    never = {"seconds": 0.0, "energy_j": 0.0, "uncertainty_j": 0.0}  # Only sparse clients prune.
    for phase in dict.fromkeys([*dense["phases"], *sparse["phases"]]):
        if phase == "idle":  # Waiting is not the work's cost.
            continue
        a, b = dense["phases"].get(phase, never), sparse["phases"].get(phase, never)
        ratio = f"{a['seconds'] / b['seconds']:.1f}x" if b["seconds"] else "-"
        table.add_row(f"{phase}, time", f"{a['seconds']:.2f} s", f"{b['seconds']:.2f} s", ratio)
        energies = [joules(one["energy_j"], one["uncertainty_j"]) for one in (a, b)]
        table.add_row(f"{phase}, energy", *energies, "")
    row("energy, total", "energy_j", lambda value: joules(value, None) if value is None else f"{value:.3g} J")
    row("peak memory of a client", "client_peak_rss_bytes", size)
    console = Console()
    console.print(table)
    console.print(
        "Times and joules are sums over the clients; receive and upload include waiting for each other.\n"
        f"energy source: {sparse['energy_source']} ('model' is computed from CPU time, not measured)\n"
        f"{seconds:.0f} s in all; report: {out}",
        highlight=False,
    )
