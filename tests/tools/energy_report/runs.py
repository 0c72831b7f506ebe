"""A run folder with figures that can be added up by hand."""

from __future__ import annotations

from pathlib import Path

from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import RoundRow, RunFolder, device_rows
from protocol.messages import Phase, Training

INA = "ina3221:VDD_IN"


def row(number: int, accuracy: float | None) -> RoundRow:
    return RoundRow(
        round_number=number,
        stage="train",
        accuracy=accuracy,
        loss=0.5,
        train_loss=0.5,
        density=0.1,
        cohort=2,
        updates=2,
        dropouts=0,
        stragglers=0,
        rejected=0,
        upload_bytes=2000,
        upload_bound_bytes=2000,
        download_bytes=200,
        energy_j=None,
        energy_uncertainty_j=None,
        duration_s=10.0,
        empty_layers=0,
    )


def phases(
    train_j: float | None, source: str = INA, scope: str = "module_input", **more: object
) -> list[Phase]:
    """Idle 100 J, training of 10 steps of 8 in 4 s, an upload of 1000 bytes in 1 s for 1 J."""
    uncertainty_j = None if train_j is None else 0.1 * train_j
    return [
        Phase("idle", 50.0, 0.1, 100.0, 10.0, source, energy_scope=scope),
        Phase(
            "train",
            4.0,
            4.0,
            train_j,
            uncertainty_j,
            source,
            energy_scope=scope,
            num_steps=10,
            num_examples=80,
            power_peak_w=12.0,
            **more,
        ),
        Phase("upload", 1.0, 0.1, 1.0, 0.5, source, 100, 1000, energy_scope=scope),
    ]


def run(
    path: Path,
    joules: list[list[float | None]],
    accuracies: list[float | None],
    method: str = "fedavg",
    **more: object,
) -> Path:
    """A run in which client k trained for joules[round][k]."""
    experiment = Experiment(
        artifact="a",
        data="d",
        rounds=len(joules),
        method={"name": method},
        training=Training(1, 8, 0.1),
        cohort=CohortConfig(clients=2),
    )
    folder = RunFolder(path, experiment)
    for client_id in ("pi", "orin"):
        folder.event(
            "client-joined", client=client_id, profile=f"<{client_id}>", idle_w=2.0, idle_uncertainty_w=0.1
        )
    for number, (spent, accuracy) in enumerate(zip(joules, accuracies, strict=True), 1):
        for client_id, train_j in zip(("pi", "orin"), spent, strict=False):
            folder.devices(device_rows(number, client_id, phases(train_j, **more), 1000, "r", "k"))
        folder.round(row(number, accuracy))
    return path
