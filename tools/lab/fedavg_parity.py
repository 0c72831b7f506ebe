"""Dense FedAvg by sparsefleet beside a plain PyTorch loop: same split, settings and initial weights.

    python -m tools.lab.fedavg_parity fashion_mnist.npz

The federation is the real client and coordinator code over Loopback, trained by the step graph at
density 1; the loop is a dozen lines of torch. The batches are shuffled differently, so the models
differ and the accuracies should not: exit code 1 if they are more than --tolerance points apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import ROUNDS, read_csv
from edge_client.kernels import library_path
from export.export import export_module
from export.models import DEFAULT_INPUT_SHAPE, builder
from protocol.examples import Examples, load
from protocol.messages import Training
from tools.progress import display
from tools.simulate import simulate
from tools.split import split


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet split")
    parser.add_argument("--tolerance", type=float, default=1.0, help="points")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    training = Training(local_epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9)
    shape = DEFAULT_INPUT_SHAPE[options.model]
    torch.manual_seed(0)
    module = builder(options.model)(shape, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_module(module, options.model, shape, folder / "artifact", library_path())
        split(
            options.data,
            folder / "data",
            clients=options.clients,
            how="dirichlet",
            alpha=options.alpha,
            seed=0,
        )
        files = {path.stem: path for path in sorted((folder / "data").glob("client-*.npz"))}
        experiment = Experiment(
            artifact=str(folder / "artifact"),
            data=str(folder / "data"),
            rounds=options.rounds,
            method={"name": "fedavg"},
            training=training,
            cohort=CohortConfig(clients=options.clients, deadline_s=3600.0),
        )
        with display("sparsefleet", options.json) as show:
            simulate(experiment, files, folder / "run", show)
        ours = float(read_csv(folder / "run" / ROUNDS)[-1]["accuracy"])
        clients = [load(path, shape, 10) for path in files.values()]
        theirs = torch_fedavg(
            module, clients, load(folder / "data" / "test.npz", shape, 10), training, options.rounds
        )
    points = 100 * abs(ours - theirs)
    found = {
        "sparsefleet": ours,
        "torch": theirs,
        "difference_points": points,
        "tolerance_points": options.tolerance,
    }
    print(
        json.dumps(found)
        if options.json
        else f"sparsefleet {ours:.4f}, torch {theirs:.4f}: {points:.2f} points apart"
    )
    return 0 if points <= options.tolerance else 1


def torch_fedavg(
    module: nn.Module, clients: list[Examples], test: Examples, training: Training, rounds: int
) -> float:
    """McMahan et al., 2017, Algorithm 1, in plain PyTorch; return the test accuracy."""
    torch.manual_seed(1)
    current = copy.deepcopy(module)
    total = sum(len(examples) for examples in clients)
    for _ in range(rounds):
        mean = {
            name: torch.zeros_like(value, dtype=torch.float64) for name, value in current.state_dict().items()
        }
        for examples in clients:
            local = copy.deepcopy(current).train()
            optimizer = torch.optim.SGD(local.parameters(), training.learning_rate, training.momentum)
            x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
            for _ in range(training.local_epochs):
                for batch in torch.split(torch.randperm(len(y)), training.batch_size):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(local(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            for name, value in local.state_dict().items():
                mean[name] += value * (len(examples) / total)
        current.load_state_dict(mean)
    with torch.no_grad():
        predictions = current.eval()(torch.from_numpy(test.x)).argmax(1)
    return float((predictions == torch.from_numpy(test.y)).double().mean())


if __name__ == "__main__":
    sys.exit(main())
