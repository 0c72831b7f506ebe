"""The options of `sparsefleet bench` and what each part prints. Imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

USUAL_BATCH = {"mlp": 64, "lenet": 64, "cnn": 64, "resnet8": 16, "resnet18": 16, "vgg19": 32}
DENSITIES = (0.1, 0.05, 0.02)
PARTS = {
    "step": ("One whole training step beside other engines.", "step --model resnet18 --batch 16 --density 0.02"),
    "gemm": ("One linear layer, all three products, beside torch.", "gemm --size 1024 --batch 64 --density 0.02"),
    "layers": ("Each layer alone and hot, beside the roofline.", "layers --model resnet18 --density 0.05"),
    "roofline": ("What one core of this machine can do at most.", "roofline"),
    "memory": ("Peak memory of a client that trains each model.", "memory --model resnet18 --density 0.02"),
    "table": ("The engine's targets beside what is measured here; minutes.", "table"),
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the parts and their options to `sparsefleet bench`; without a part it measures everything."""
    parser.add_argument("--out", type=Path, help="write CSV, JSON and a plot of everything into this folder")
    parser.add_argument("--model", help="one model instead of the usual list")
    _common(parser)
    parser.set_defaults(run=_everything)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    made: dict[str, argparse.ArgumentParser] = {}
    for name, (text, example) in PARTS.items():
        part = made[name] = parts.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  sparsefleet bench {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.set_defaults(run=globals()[f"_{name}"])
        if name != "table":
            part.add_argument("--json", action="store_true", help="one JSON object for each measurement")
        if name != "roofline":
            _common(part)
        if name in ("step", "layers", "memory"):
            part.add_argument("--model", help="a built-in model, or yours as module:function (needs torch)")
            part.add_argument("--artifact", type=Path, help="an artifact folder instead of a model")
        if name in ("step", "gemm", "layers", "memory"):
            part.add_argument("--batch", type=_positive, help="examples; default as in docs/bench.md")
            part.add_argument("--density", type=_share, help="one density instead of the usual list")
        if name in ("memory", "table"):
            part.add_argument(
                "--client-python",
                default=sys.executable,
                metavar="PYTHON",
                help="interpreter of the client whose memory is measured: one with a board's packages",
            )
        if name in ("step", "memory"):
            part.add_argument("--masks", choices=["uniform", "erk"], default="uniform")
    made["step"].add_argument(
        "--against",
        default="dense_torch,dense_ort_training,sparseprop,dense",
        help="sides to measure beside ours, with commas; default: %(default)s",
    )
    made["gemm"].add_argument("--size", type=_positive, default=1024)
    made["table"].add_argument(
        "--structured",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="narrowed ResNet-18 artifacts",
    )
    made["table"].add_argument("--only", default="", help="only rows whose name contains this")
    made["table"].add_argument(
        "--out", type=Path, help="also write the table and every figure behind it here"
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_positive, default=1, help="of every side; default 1")
    parser.add_argument("--seconds", type=float, help="time given to each side of a measurement")


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
        found = gemm.measure(options.size, options.batch or 64, density, options.threads, **_time(options))
        _show(options, found, gemm.line(found))
    return 0


def _layers(options: argparse.Namespace) -> int:
    from tools.bench import layers

    def one(subject: Any, batch: int, density: float) -> None:
        found = layers.measure(subject, batch, density, options.threads, **_time(options))
        _show(options, found, layers.lines(found))

    return _for_each(options, ("resnet18",), one)


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


def _table(options: argparse.Namespace) -> int:
    from tools.bench import table
    from tools.bench.timing import SECONDS

    bench = table.Bench(options.seconds or SECONDS, options.client_python)
    table.print_table(bench, options.structured, options.only, options.out)
    return 0


def _everything(options: argparse.Namespace) -> int:
    from tools.bench import report

    models = [options.model] if options.model else ["mlp", "lenet", "resnet18", "vgg19"]
    batches = {model: USUAL_BATCH.get(model, 16) for model in models}
    report.measure(batches, DENSITIES, options.threads, options.out, **_time(options))
    return 0
