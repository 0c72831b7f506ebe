"""The options of `sparsefleet bench` and what each part prints. Imports what it needs when it runs."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from protocol.codec import ValueFormat
from protocol.errors import ConfigError
from tools.bench import isa

USUAL_BATCH = {"mlp": 64, "lenet": 64, "cnn": 64, "resnet8": 16, "resnet18": 16, "vgg19": 32}
DENSITIES = (0.1, 0.05, 0.02)
CODEC_DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)
# Each part: what it is for, an example, and its options.
PARTS = {
    "step": (
        "One whole training step beside other engines.",
        "step --model resnet18 --batch 16 --density 0.02",
        "model artifact batch density masks against isa threads seconds json",
    ),
    "gemm": (
        "One linear layer, all three products, beside torch.",
        "gemm --size 1024 --batch 64 --density 0.02",
        "size batch density isa threads seconds json",
    ),
    "layers": (
        "Each layer alone and hot, beside the roofline.",
        "layers --model resnet18 --density 0.05",
        "model artifact batch density isa threads seconds json",
    ),
    "profile": (
        "Where the time of a step goes, by operator.",
        "profile --model resnet18 --density 0.02",
        "model artifact batch density masks threads json",
    ),
    "calibrate": (
        "From which density on layers run faster dense here; for a client, with its --state.",
        "calibrate --state state/pi-07",
        "state threads seconds json",
    ),
    "roofline": ("What one core of this machine can do at most.", "roofline", "isa json"),
    "memory": (
        "Peak memory of a client that trains each model.",
        "memory --model resnet18 --density 0.02",
        "model artifact batch density masks threads client-python json",
    ),
    "codec": (
        "A body's bytes beside the entropy bound, and the time to code and read it.",
        "codec --size 1000000 --density 0.05 --values f16",
        "size density values seconds json",
    ),
    "load": (
        "How many clients one coordinator bears: connections and updates are real, training is not.",
        "load --artifact artifacts/mlp --data data --clients 1000 --density 0.05",
        "artifact data clients rounds density json",
    ),
    "table": (
        "The engine's targets beside what is measured here; minutes.",
        "table --out runs/table",
        "structured only isa seconds client-python out",
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the parts and their options to `sparsefleet bench`; without a part it measures everything."""
    known = _options()
    for name in EVERYTHING:
        own = {"default": None, "metavar": known[name].get("metavar", name.upper())}
        parser.add_argument(f"--{name}", dest=f"all_{name}", **{**known[name], **own})
    parser.set_defaults(run=_everything)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    for name, (text, example, options) in PARTS.items():
        part = parts.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  sparsefleet bench {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in options.split():
            part.add_argument(f"--{option}", **known[option])
        part.set_defaults(run=functools.partial(_run_part, globals()[f"_{name}"]))


EVERYTHING = ("out", "model", "threads", "seconds")


def _options() -> dict[str, dict[str, Any]]:
    sides = "dense_torch,dense_ort_training,sparseprop,dense"
    python = "interpreter of the client whose memory is measured: one with a board's packages"
    return {
        "model": {"help": "a built-in model, or yours as module:function (needs torch); default: several"},
        "artifact": {"type": Path, "metavar": "FOLDER", "help": "an artifact instead of a model"},
        "batch": {"type": _positive, "help": "examples; the default depends on the model"},
        "density": {"type": _share, "help": "of the prunable weights; default: 0.1, 0.05 and 0.02"},
        "masks": {"choices": ["uniform", "erk"], "default": "uniform"},
        "against": {"default": sides, "help": "sides to measure beside ours; default: %(default)s"},
        "size": {"type": _positive, "help": "inputs and outputs, 1024; or positions, 1000000"},
        "values": {"choices": get_args(ValueFormat), "help": "value format; default f16"},
        "isa": {
            "choices": list(isa.NAMES),
            "help": "instruction set of our kernels and torch's; default: the widest",
        },
        "threads": {"type": _positive, "default": 1, "help": "of every side; default 1"},
        "seconds": {"type": float, "help": "time given to each side of a measurement; default 4, layers 1"},
        "client-python": {"default": sys.executable, "metavar": "PYTHON", "help": python},
        "data": {"type": Path, "metavar": "FOLDER", "help": "with test.npz, of `sparsefleet data split`"},
        "clients": {"type": _positive, "default": 1000, "help": "default 1000"},
        "rounds": {"type": _positive, "default": 3, "help": "default 3"},
        "structured": {
            "type": Path,
            "nargs": "+",
            "default": [],
            "metavar": "FOLDER",
            "help": "narrowed ResNet-18 artifacts",
        },
        "only": {"default": "", "metavar": "TEXT", "help": "only rows whose name contains this"},
        "out": {"type": Path, "metavar": "FOLDER", "help": "write every figure into this folder"},
        "state": {"type": Path, "metavar": "FOLDER", "help": "of the client that is to use the figure"},
        "json": {"action": "store_true", "help": "print one JSON object for each measurement"},
    }


def _run_part(part: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    given = [f"--{name}" for name in EVERYTHING if getattr(options, f"all_{name}") is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: write the options of `bench {options.part}` after its name")
    if getattr(options, "isa", None):
        isa.hold(options.isa)
    return part(options)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a density: it is above 0 and at most 1")
    return value


def _show(options: argparse.Namespace, found: dict[str, Any], text: str | list[str]) -> None:
    lines = [text] if isinstance(text, str) else text
    print(json.dumps(found) if options.json else "\n".join(lines), flush=True)


def _time(options: argparse.Namespace) -> dict[str, float]:
    return {} if options.seconds is None else {"seconds": options.seconds}


def _for_each(
    options: argparse.Namespace, usual: tuple[str, ...], measure: Callable[[Any, int, float], None]
) -> int:
    """Call measure(subject, batch, density) for what was asked for, or for the usual list."""
    from tools.bench.subject import from_artifact, from_model

    if options.artifact is not None:
        if options.model:
            raise ConfigError("--model and --artifact are both given; the artifact names its own model")
        subjects = [from_artifact(options.artifact)]
    else:
        subjects = [from_model(model) for model in ([options.model] if options.model else usual)]
    for subject in subjects:
        batch = options.batch or USUAL_BATCH.get(subject.manifest.model, 16)
        for density in [options.density] if options.density else DENSITIES:
            measure(subject, batch, density)
    return 0


def _step(options: argparse.Namespace) -> int:
    from tools.bench import step

    against = tuple(side for side in options.against.split(",") if side)
    unknown = [side for side in against if side not in step.SIDES]
    if unknown:
        raise ConfigError(f"--against {', '.join(unknown)}: the sides are {', '.join(step.SIDES)}")

    def one(subject: Any, batch: int, density: float) -> None:
        found = step.measure(
            subject, batch, density, options.masks, options.threads, against, **_time(options)
        )
        _show(options, found, step.line(found))

    return _for_each(options, ("mlp", "lenet", "resnet18"), one)


def _gemm(options: argparse.Namespace) -> int:
    from tools.bench import gemm

    for density in [options.density] if options.density else DENSITIES:
        found = gemm.measure(
            options.size or 1024, options.batch or 64, density, options.threads, **_time(options)
        )
        _show(options, found, gemm.line(found))
    return 0


def _layers(options: argparse.Namespace) -> int:
    from tools.bench import layers

    def one(subject: Any, batch: int, density: float) -> None:
        found = layers.measure(subject, batch, density, options.threads, **_time(options))
        _show(options, found, layers.lines(found))

    return _for_each(options, ("resnet18",), one)


def _profile(options: argparse.Namespace) -> int:
    from tools.bench import profile

    def one(subject: Any, batch: int, density: float) -> None:
        found = profile.measure(subject, batch, density, options.masks, options.threads)
        _show(options, found, profile.lines(found))

    return _for_each(options, ("resnet18",), one)


def _calibrate(options: argparse.Namespace) -> int:
    from tools.bench import calibrate

    found = calibrate.measure(options.threads, options.seconds or 1.0)
    text = calibrate.lines(found)
    if options.state is not None:
        text.append(f"kept in {calibrate.keep(options.state, found)}")
    _show(options, found, text)
    return 0


def _load(options: argparse.Namespace) -> int:
    from tools.bench import load

    if options.artifact is None or options.data is None:
        raise ConfigError(
            "give --artifact and --data: `sparsefleet export` and `sparsefleet data split` make them"
        )
    found = load.measure(
        options.clients, options.rounds, options.artifact, options.density or 0.05, options.data
    )
    _show(options, asdict(found), load.line(found))
    return 0


def _roofline(options: argparse.Namespace) -> int:
    from tools.bench import roofline

    found = roofline.measure()
    _show(options, found, roofline.lines(found))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from tools.bench import memory

    def one(subject: Any, batch: int, density: float) -> None:
        found = memory.measure(subject, batch, density, options.masks, options.threads, options.client_python)
        _show(options, found, memory.line(found))

    return _for_each(options, tuple(USUAL_BATCH), one)


def _codec(options: argparse.Namespace) -> int:
    from tools.bench import codec

    for density in [options.density] if options.density else CODEC_DENSITIES:
        found = codec.measure(options.size or 1_000_000, density, options.values or "f16", **_time(options))
        _show(options, found, codec.line(found))
    return 0


def _table(options: argparse.Namespace) -> int:
    from tools.bench import table
    from tools.bench.timing import SECONDS

    bench = table.Bench(SECONDS if options.seconds is None else options.seconds, options.client_python)
    table.print_table(bench, options.structured, options.only, options.out)
    return 0


def _everything(options: argparse.Namespace) -> int:
    from tools.bench import report
    from tools.bench.timing import SECONDS

    models = [options.all_model] if options.all_model else ["mlp", "lenet", "resnet18", "vgg19"]
    batches = {model: USUAL_BATCH.get(model, 16) for model in models}
    seconds = SECONDS if options.all_seconds is None else options.all_seconds
    report.measure(batches, DENSITIES, options.all_threads or 1, options.all_out, seconds)
    return 0
