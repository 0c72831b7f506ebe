"""The sparsefleet command.

Each subcommand imports what it needs when it runs, so that a board, which has neither torch nor the
coordinator's libraries, can use those that are for it.

Exit codes: 0 done, 1 the work failed, 2 something the user can cure (the text says how), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.artifact import CROSS_ENTROPY, LOSSES
from protocol.errors import ConfigError, SparsefleetError, UserError

if TYPE_CHECKING:
    from protocol.artifact import Manifest

Subparsers = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    level = logging.DEBUG if options.verbose > 1 else logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,  # The training build of onnxruntime sets up logging of its own when it is imported.
    )
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # Whoever reads has enough: `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"sparsefleet: {error}", file=sys.stderr)
        return 2
    except SparsefleetError as error:
        print(f"sparsefleet: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRA_OF:
            raise
        extra = EXTRA_OF[error.name.split(".")[0]]
        print(
            f"sparsefleet: this command needs {error.name}: pip install 'sparsefleet[{extra}]'",
            file=sys.stderr,
        )
        return 2


EXTRA_OF = {
    "torch": "export",
    "onnx": "coordinator",
    "amqtt": "coordinator",
    "rich": "coordinator",
    "onnxruntime": "device",
    "sklearn": "demo",
    "matplotlib": "plots",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsefleet",
        description="Train neural networks on boards: federated, sparse, with the joules it costs.",
    )
    parser.add_argument("--version", action="version", version=f"sparsefleet {_version()}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log what happens; -vv logs more")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _lab,
        _demo,
        _export,
        _data,
        _run,
        _client,
        _fleet,
        _broker,
        _energy,
        _bench,
        _doctor,
        _chaos,
        _device,
        _card,
    ):
        add(commands)
    return parser


def _command(commands: Subparsers, name: str, text: str, example: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    return commands.add_parser(  # type: ignore[attr-defined, no-any-return]
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _demo(commands: Subparsers) -> None:  # type: ignore[valid-type]
    parser = _command(
        commands, "demo", "Train a small federation here: sparse beside dense.", "sparsefleet demo"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything it makes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=5, help="client processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    def run(options: argparse.Namespace) -> int:
        from tools.demo import demo

        return demo(options.out, options.clients, options.rounds, options.json)

    parser.set_defaults(run=run)


def _lab(commands: Subparsers) -> None:  # type: ignore[valid-type]
    example = "sparsefleet lab tools/lab/fashion.toml --processes 2"
    parser = _command(commands, "lab", "Compare methods on real data, simulated with the real code.", example)
    parser.add_argument("file", type=Path, help="the lab file (docs/lab.md)")
    parser.add_argument(
        "--out", type=Path, help="folder; default: runs/lab/NAME-DIGEST. Continued where it was"
    )
    parser.add_argument("--processes", type=int, default=1, help="simulations at a time; default 1")
    parser.add_argument("--json", action="store_true")

    def run(options: argparse.Namespace) -> int:
        from tools.lab.lab import default_out, run_lab

        if not options.file.is_file():
            raise ConfigError(f"{options.file} not found; tools/lab/ has some to begin with")
        return run_lab(
            options.file, options.out or default_out(options.file), options.processes, options.json
        )

    parser.set_defaults(run=run)


def _export(commands: Subparsers) -> None:  # type: ignore[valid-type]
    example = "sparsefleet export resnet18 --out artifacts/resnet18"
    parser = _command(
        commands, "export", "Turn a PyTorch module into an artifact that devices train.", example
    )
    parser.add_argument(
        "model",
        help="mlp, lenet, cnn, resnet8, resnet8_gn, resnet12_gn, resnet18, vgg19, vit, or yours as module:function",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifact")
    parser.add_argument("--input-shape", help="channels,height,width; built-in models have a default")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--weights", type=Path, metavar="NPZ", help="begin with these: a run's weights.npz")
    parser.add_argument("--loss", choices=LOSSES, default=CROSS_ENTROPY, help="mse: labels are real numbers")
    parser.add_argument("--keep", type=float, metavar="SHARE", help="of the parameters; channels are removed")
    parser.add_argument("--importance", choices=["l1", "bn-scale"], default="l1", help="of a channel")
    parser.add_argument(
        "--ranking", choices=["layer", "global"], default="layer", help="channels compete within these"
    )
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of it; default 8")
    parser.add_argument("--json", action="store_true")

    def run(options: argparse.Namespace) -> int:
        from edge_client.kernels import library_path
        from export.export import export_model
        from export.models import input_shape
        from export.narrow import Widths

        shape = input_shape(options.model, options.input_shape)
        widths = None
        if options.keep is not None:
            widths = Widths(options.keep, options.importance, options.ranking, options.round_to)
        exported = export_model(
            options.model,
            shape,
            options.classes,
            options.out,
            library_path(),
            options.seed,
            options.loss,
            widths,
            options.weights,
        )
        layout = exported.manifest.layout
        planned = {density: _peak_bytes(exported.manifest, density) for density in (1.0, 0.1, 0.02)}
        facts = {
            "artifact": str(options.out),
            "digest": exported.manifest.digest,
            "num_parameters": layout.num_trainable,
            "num_prunable": layout.num_prunable,
            "worst_relative_difference": exported.worst_difference,
            "planned_peak_bytes": {f"density {density:g}": peak for density, peak in planned.items()},
        }
        if exported.narrowed is not None:
            facts["narrowed"] = exported.narrowed.facts()
        if options.json:
            print(json.dumps(facts))
        else:
            if exported.narrowed is not None:
                print("\n".join(exported.narrowed.lines()))
            print(
                f"{options.out}: {layout.num_trainable:,} parameters, {layout.num_prunable:,} prunable; loss and "
                f"gradients differ from PyTorch by at most {exported.worst_difference:.1e}"
            )
            peaks = ", ".join(f"{peak / 1e6:.0f} MB at density {d:g}" for d, peak in planned.items())
            print(f"a client that trains it in batches of {PLANNED_BATCH} will need {peaks}")
        return 0

    parser.set_defaults(run=run)


PLANNED_BATCH = 16


def _peak_bytes(manifest: Manifest, density: float) -> int:
    """Memory of a client without examples that trains the model in batches of PLANNED_BATCH."""
    from edge_client.memory import plan

    layout = manifest.layout
    nnz = round(density * layout.num_prunable) + layout.size - layout.num_prunable
    planned = plan(manifest, nnz, PLANNED_BATCH)
    assert planned is not None  # It was exported just now.
    return planned.peak_bytes


def _data(commands: Subparsers) -> None:  # type: ignore[valid-type]
    data = _command(
        commands,
        "data",
        "Prepare examples for clients.",
        "sparsefleet data split digits --clients 5 --out data",
    )
    parts = data.add_subparsers(dest="part", required=True, metavar="COMMAND")
    example = "sparsefleet data split mnist.npz --clients 20 --how dirichlet --alpha 0.1 --out data"
    parser = _command(
        parts, "split", "Split a data set into one file for each client and a test file.", example
    )
    parser.add_argument("source", help=".npz with x, y (or x_train, y_train, x_test, y_test), or 'digits'")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, help="how many; with --how by: the largest so many")
    parser.add_argument("--how", choices=["iid", "dirichlet", "by"], default="iid")
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="of the Dirichlet split: smaller is more skewed"
    )
    parser.add_argument("--by", help="array with a natural id of each example, such as writer or user")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace an earlier split")
    parser.add_argument("--json", action="store_true")

    def run(options: argparse.Namespace) -> int:
        from tools.split import split

        report = split(
            source=options.source,
            out=options.out,
            clients=options.clients,
            how=options.how,
            alpha=options.alpha,
            by=options.by,
            seed=options.seed,
            force=options.force,
        )
        sizes = [part.num_examples for part in report.clients]
        if options.json:
            print((options.out / "split.json").read_text())
        else:
            print(
                f"{options.out}: {len(sizes)} clients with {min(sizes)} to {max(sizes)} examples, and test.npz"
            )
        return 0

    parser.set_defaults(run=run)


def _run(commands: Subparsers) -> None:  # type: ignore[valid-type]
    parser = _command(commands, "run", "Coordinate one experiment.", "sparsefleet run experiment.toml")
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--broker", help="mqtt://host:port of a broker; without it one is started inside")
    parser.add_argument("--out", type=Path, help="run folder; default runs/<name>-<time>")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override the file"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")

    def run(options: argparse.Namespace) -> int:
        from tools.run import run_experiment

        return run_experiment(options)

    parser.set_defaults(run=run)


def _client(commands: Subparsers) -> None:  # type: ignore[valid-type]
    parser = _command(
        commands, "client", "Run the client of this device.", "sparsefleet client --config client.toml"
    )
    parser.add_argument("--config", type=Path, help="TOML file; the flags below override it")
    parser.add_argument("--client-id")
    parser.add_argument("--data", help=".npz with x and y")
    parser.add_argument("--state", help="folder for what survives a restart")
    parser.add_argument("--runtime", choices=["portable", "module"])
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--spin", action="store_true", default=None, help="threads wait awake without a bound"
    )
    parser.add_argument("--saved-activations", choices=["full", "compressed", "half"])
    parser.add_argument("--memory-budget-mb", type=int, help="refuse tasks that need more; 0: by profile")
    parser.add_argument("--energy", help="auto, auto-process, none, or a source by name (docs/energy.md)")
    parser.add_argument("--broker", help="mqtts://host:port; the password is in SPARSEFLEET_PASSWORD")
    parser.add_argument("--ca", type=Path, help="the coordinator's ca.pem, for mqtts://")
    parser.add_argument("--fleet")
    parser.add_argument("--exit-after-run", action="store_true", default=None, help="leave when the run ends")

    def run(options: argparse.Namespace) -> int:
        from tools.client import run_client

        return run_client(options)

    parser.set_defaults(run=run)


def _fleet(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.fleet import configure

    configure(_command(commands, "fleet", "Who belongs to the fleet.", "sparsefleet fleet code"))


def _broker(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.broker import configure

    text = "Certificates and configurations for brokers."
    configure(_command(commands, "broker", text, "sparsefleet broker config --kind mosquitto --out broker"))


def _energy(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.energy import configure

    text = "What can tell the joules of this board, and how well."
    configure(_command(commands, "energy", text, "sparsefleet energy sources"))


def _doctor(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.doctor import configure

    text = "What is missing, wrong or slow on this machine, each with its cure."
    configure(_command(commands, "doctor", text, "sparsefleet doctor --client client.toml"))


def _device(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.device.command import configure

    text = "Install, update or remove the client as a service of this board."
    configure(_command(commands, "device", text, "sudo sparsefleet device update dist/sparsefleet-....whl"))


def _card(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.card.command import configure

    text = "Prepare a flashed card: its board joins the fleet at its first boot, with no command typed there."
    configure(
        _command(commands, "card", text, "sparsefleet card --board rpi5 --out /media/you/bootfs --dry-run")
    )


def _bench(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.bench.command import configure

    example = "sparsefleet bench step --model resnet18 --batch 16 --density 0.02"
    text = "Measure this machine: training steps beside other engines, layers beside the roofline, memory."
    configure(_command(commands, "bench", text, example))


def _chaos(commands: Subparsers) -> None:  # type: ignore[valid-type]
    from tools.chaos.command import configure

    example = "sparsefleet chaos --listen 127.0.0.1:1884 --broker 127.0.0.1:1883 --fault lose=0.05 --fault cut=10@30/60"
    text = "Inject faults between clients and broker, and into processes, to see a fleet survive them."
    configure(_command(commands, "chaos", text, example))


def _version() -> str:
    try:
        return importlib.metadata.version("sparsefleet")
    except importlib.metadata.PackageNotFoundError:
        return "from source, not installed"


if __name__ == "__main__":
    sys.exit(main())
