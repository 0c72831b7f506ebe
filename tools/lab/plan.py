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

from coordinator.experiment import ScheduleConfig, WireConfig
from protocol.config import load
from protocol.errors import ConfigError
from protocol.messages import Setting, Training
from protocol.methods import build

DATA_VARIABLE = "SPARSEFLEET_DATA"
Amount = Annotated[int, msgspec.Meta(ge=1)]


class Data(msgspec.Struct, forbid_unknown_fields=True):
    """Where the examples come from, and how many clients share them."""

    source: str
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
    alphas: Annotated[list[float], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [1.0])


class Cell(msgspec.Struct, frozen=True):
    """One simulation."""

    row: int
    alpha: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"row-{self.row:02}-alpha-{self.alpha:g}-seed-{self.seed}"


def read(path: Path) -> Plan:
    """Read a lab file.

    Raises:
        ConfigError: unreadable, an unknown key, a wrong value, an unknown method, or two rows of one name.
    """
    plan = load(path, Plan, ())
    labels = [row.label for row in plan.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{path}: two rows are called {label!r}; give them names")
    for row in plan.rows:
        training_of(plan, row)
        build(str(row.method.get("name")), {k: v for k, v in row.method.items() if k != "name"})
    return plan


def cells(plan: Plan) -> list[Cell]:
    """All simulations, seeds outermost, so that a lab that is stopped early has whole tables."""
    rows = range(len(plan.rows))
    return [Cell(row, alpha, seed) for seed in plan.seeds for alpha in plan.alphas for row in rows]


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
