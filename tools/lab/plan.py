"""A lab file: which methods, on what data, how often. Strict TOML, as an experiment.

model = "lenet"
rounds = 40
seeds = msgspec.field(default_factory=lambda: [0, 1, 2])
alphas = [0.1, 1.0]                    # of the Dirichlet partition
backend = "onnxruntime"                # as on devices; or gradients by "torch-cpu", "torch-cuda"

[data]
source = "fashion_mnist.npz"           # in $SPARSEFLEET_DATA (default ../shared/data), or "digits"
train = 10000                          # examples drawn from it; 0: all
test = 2000
clients = 20
per_round = 10
by = "user"                            # instead of alphas: a client is one of its values, the largest ones

[training]                             # of all rows; a row may change it
local_epochs = 1
batch_size = 32
learning_rate = 0.05

[[rows]]
name = "FedPaI 98 %"
method = { name = "fedpai", density = 0.02 }
wire = { upload_values = "f16" }
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordinator.experiment import CohortConfig, ScheduleConfig, WireConfig
from protocol.config import load
from protocol.errors import ConfigError
from protocol.messages import Setting, Training
from protocol.methods import build
from tools.lab.boards import Board

DATA_VARIABLE = "SPARSEFLEET_DATA"
Amount = Annotated[int, msgspec.Meta(ge=1)]


class Data(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the examples come from, and how many clients share them."""

    source: str
    by: str = ""  # The array of natural ids; then there are no alphas, and each seed has the same clients.
    clients: Amount
    per_round: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: all.
    train: Annotated[int, msgspec.Meta(ge=0)] = 0
    test: Annotated[int, msgspec.Meta(ge=0)] = 0


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the table."""

    method: dict[str, Setting]
    name: str = ""
    wire: WireConfig = msgspec.field(default_factory=WireConfig)
    training: dict[str, Any] = msgspec.field(default_factory=dict)  # What differs from the lab's.
    schedule: ScheduleConfig = msgspec.field(default_factory=ScheduleConfig)
    gain: float = 2.0  # Of the drawn model: variance times fan-in.
    cohort: dict[str, Any] = msgspec.field(default_factory=dict)  # choose, train_target_s.

    @property
    def label(self) -> str:
        """What the table calls it."""
        return self.name or str(self.method.get("name"))


class Plan(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A whole lab."""

    model: str
    rounds: Amount
    data: Data
    training: Training
    rows: Annotated[list[Row], msgspec.Meta(min_length=1)]
    backend: Literal["onnxruntime", "torch-cpu", "torch-cuda"] = "onnxruntime"
    input_shape: str | None = None
    num_classes: Amount = 10
    seeds: Annotated[list[int], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [0, 1, 2])
    alphas: list[float] = []
    boards: list[Board] = []  # Modelled (tools/lab/boards.py); none: nothing is said of joules and time.

    @property
    def skews(self) -> list[float | None]:
        """Alpha of each partition; None is the natural one."""
        return [None] if self.data.by else [*self.alphas]


def skew_name(alpha: float | None) -> str:
    """How a partition is called."""
    return "natural" if alpha is None else f"alpha-{alpha:g}"


class Cell(msgspec.Struct, frozen=True):
    """One simulation."""

    row: int
    alpha: float | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"row-{self.row:02}-{skew_name(self.alpha)}-seed-{self.seed}"


def read(path: Path) -> Plan:
    """Read a lab file.

    Raises:
        ConfigError: unreadable, an unknown key, a wrong value, an unknown method, two rows of one name, or
            not exactly one of alphas and data.by.
    """
    plan = load(path, Plan, ())
    if bool(plan.alphas) == bool(plan.data.by):
        raise ConfigError(f"{path}: give either alphas, of Dirichlet partitions, or data.by, a natural one")
    labels = [row.label for row in plan.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{path}: two rows are called {label!r}; give them names")
    for row in plan.rows:
        training = training_of(plan, row)
        method = build(str(row.method.get("name")), {k: v for k, v in row.method.items() if k != "name"})
        method.check(training, row.wire.download_values)
        cohort_of(plan, row).check(method)
    if plan.boards and sum(board.count for board in plan.boards) != plan.data.clients:
        raise ConfigError(
            f"{path}: the boards' counts are {sum(b.count for b in plan.boards)} together, "
            f"data.clients is {plan.data.clients}"
        )
    return plan


def cells(plan: Plan) -> list[Cell]:
    """All simulations, seeds outermost, so that a lab that is stopped early has whole tables."""
    rows = range(len(plan.rows))
    return [Cell(row, alpha, seed) for seed in plan.seeds for alpha in plan.skews for row in rows]


def training_of(plan: Plan, row: Row) -> Training:
    """Local training of one row.

    Raises:
        ConfigError: the row changes something that training does not have.
    """
    unknown = [name for name in row.training if name not in Training.__struct_fields__]
    if unknown:
        raise ConfigError(f"row {row.label!r}: training has no {', '.join(unknown)}")
    try:
        return msgspec.convert({**msgspec.to_builtins(plan.training), **row.training}, Training)
    except msgspec.ValidationError as error:
        raise ConfigError(f"row {row.label!r}: training: {error}") from error


def cohort_of(plan: Plan, row: Row) -> CohortConfig:
    """Who is asked in one row.

    Raises:
        ConfigError: the row sets something that is no part of it.
    """
    data = {"clients": plan.data.clients, "per_round": plan.data.per_round, "deadline_s": 3600.0}
    try:
        return msgspec.convert({**data, **row.cohort}, CohortConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"row {row.label!r}: cohort: {error}") from error


def source_of(plan: Plan) -> str:
    """The data set's path.

    Raises:
        ConfigError: it is not there.
    """
    if plan.data.source == "digits":
        return plan.data.source
    folder = Path(os.environ.get(DATA_VARIABLE, "../shared/data"))
    for path in (Path(plan.data.source), folder / plan.data.source):
        if path.is_file():
            return str(path)
    raise ConfigError(
        f"{plan.data.source} is neither here nor in {folder}: set {DATA_VARIABLE} to the folder that has it"
    )
