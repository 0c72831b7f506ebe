"""sparsefleet energy: which sources a board has, how fast its sensor follows, what the board takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from device_profiles import detect, load, machine_name
from edge_client.config import read as read_config
from edge_client.energy.choose import choose, survey
from edge_client.energy.conditions import watch
from edge_client.energy.meter import Meter
from edge_client.energy.power_mode import power_mode
from edge_client.energy.settings import MeterSettings
from edge_client.energy.source import Sensor, Unavailable
from edge_client.energy.step_response import step_test
from protocol.durable import replace_file
from protocol.errors import ConfigError
from tools.energy_report.options import configure as configure_report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the parts and their options."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    text = "List what would be read here, and why the rest would not."
    sources = parts.add_parser("sources", help=text, description=text)
    sources.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="a tree that stands for /, as recorded from a board",
    )
    sources.add_argument("--profile", default="auto", help="device profile; auto: by the tree")
    sources.add_argument("--json", action="store_true")
    sources.set_defaults(run=lambda options: print_sources(options.root, options.profile, options.json))

    text = "Measure the time constant of the power sensor's low pass: loads and unloads all cores, half a minute."
    step = parts.add_parser("step-test", help=text, description=text)
    step.add_argument("--energy", default="auto", help="which source; auto: as a client would choose")
    step.add_argument("--json", action="store_true")
    step.set_defaults(run=lambda options: print_step_test(options.energy, options.json))
    text = (
        "Measure this board alone: idle, steps at several densities, codec; one file, without a coordinator."
    )
    profile = parts.add_parser("profile", help=text, description=text)
    profile.add_argument("--model", default="resnet8", help="one whose graph is packaged")
    profile.add_argument("--batch", type=int, default=16)
    profile.add_argument("--densities", default="1,0.1,0.05,0.02")
    profile.add_argument("--threads", type=int, help="default: as the device profile recommends")
    profile.add_argument("--seconds", type=float, default=10.0, help="of each part; longer is surer")
    profile.add_argument("--energy", default="auto", help="which source; auto: as a client would choose")
    profile.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    profile.add_argument("--json", action="store_true")
    profile.set_defaults(run=print_profile)
    text = (
        "Compare this board's source with an external meter over a ladder of loads, and print the correction."
    )
    calibrate = parts.add_parser("calibrate", help=text, description=text)
    calibrate.add_argument("--energy", default="auto", help="which source; auto: as a client would choose")
    calibrate.add_argument("--reference", help="plug, i2c or hwmon, as [meter] of --config describes it")
    calibrate.add_argument("--config", type=Path, help="the client's configuration")
    calibrate.add_argument(
        "--seconds", type=float, default=60.0, help="of each load; 300 and more with a plug"
    )
    calibrate.add_argument("--ladder", type=Path, metavar="FILE", help="where the loads are kept, for --csv")
    calibrate.add_argument("--csv", type=Path, help="an external meter's file: columns unix_s, watts")
    calibrate.add_argument("--json", action="store_true")
    calibrate.set_defaults(run=print_calibration)
    text = "Draw what runs, boards' profiles and kept samples say: one HTML page, and the numbers as CSV and JSON."
    report = parts.add_parser("report", help=text, description=text)
    configure_report(report)


def print_calibration(options: argparse.Namespace) -> int:
    """Run the ladder, or fit one that was run, and print what to write into the client's configuration.

    Raises:
        ConfigError: options that do not go together, a source that fails, loads that cannot be fitted.
    """
    from tools import energy_calibrate

    if options.csv is not None:
        if options.ladder is None:
            raise ConfigError("--csv needs --ladder, the file of the loads that were run")
        found = energy_calibrate.calibrate(energy_calibrate.read_ladder(options.ladder), options.csv)
    else:
        if (options.reference is None) == (options.ladder is None):
            raise ConfigError(
                "give --reference for a meter that this board reads, or --ladder FILE and later --csv"
            )
        board = detect()
        settings = read_config(options.config).meter if options.config else MeterSettings()
        settings.calibration = None
        meter = Meter(choose(options.energy, board, settings=settings))
        reference = Meter(choose(options.reference, board, settings=settings)) if options.reference else None
        ladder = energy_calibrate.climb(meter, reference, options.seconds)
        if options.ladder is not None:
            energy_calibrate.save(options.ladder, ladder)
            print(
                f"{options.ladder}: {len(ladder.loads)} loads; now: energy calibrate --ladder ... --csv METER.csv"
            )
            return 0
        found = energy_calibrate.calibrate(ladder, None)
    print(json.dumps(msgspec.to_builtins(found)) if options.json else energy_calibrate.lines(found))
    return 0


def print_profile(options: argparse.Namespace) -> int:
    """Measure and print the board's energy profile.

    Raises:
        ConfigError: a density, batch or time that makes no sense; no such graph or source.
    """
    from tools import energy_profile  # It needs onnxruntime.
    from tools.bench.subject import from_package

    try:
        densities = [float(text) for text in options.densities.split(",")]
    except ValueError:
        densities = []
    if not densities or not all(0 < density <= 1 for density in densities):
        raise ConfigError(f"--densities {options.densities}: give numbers above 0 and up to 1, such as 1,0.1")
    if options.batch < 1 or options.seconds <= 0:
        raise ConfigError("--batch and --seconds must be positive")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: the folder does not exist")
    board = detect()
    meter = Meter(choose(options.energy, board), conditions=watch())
    found = energy_profile.measure(
        meter,
        board,
        from_package(options.model),
        options.batch,
        densities,
        options.threads or board.threads,
        options.seconds,
    )
    if options.out is not None:
        replace_file(options.out, json.dumps(found, indent=1).encode())
    print(json.dumps(found) if options.json else energy_profile.lines(found))
    return 0


def print_step_test(preference: str, as_json: bool) -> int:
    """Run the step test and print what to write into the client's configuration.

    Raises:
        ConfigError: the source is no power sensor, or the board was not quiet.
    """
    sensor = choose(preference, detect())
    found = step_test(sensor)
    if as_json:
        print(json.dumps({"source": sensor.about.name, **asdict(found)}))
    else:
        print(
            f"{sensor.about.name}: tau = {found.tau_s:.3f} ± {found.uncertainty_s:.3f} s over {found.fall_w:.1f} W"
        )
        print(f"write into the client's configuration:\n[meter]\ntau_s = {found.tau_s:.3f}")
    return 0


def print_sources(root: Path, profile_name: str, as_json: bool) -> int:
    """Print the sources under `root`.

    Raises:
        ConfigError: no such folder or profile.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder; give one that holds proc/ and sys/ as on the board")
    report = sources(root, profile_name)
    if as_json:
        print(json.dumps(report))
        return 0
    print(f"{report['machine'] or 'a machine without a name'}: profile {report['profile']}")
    for one in report["sources"]:
        mark = "*" if one["name"] == report["chosen"] and one["is_available"] else " "
        if one["is_available"]:
            print(
                f"{mark} {one['sensor']:10}  {one['name']}: {one['value']:.3f} {one['unit']}, {one['scope']}"
            )
            print(f"{'':14}covers {one['covers']}")
            print(f"{'':14}leaves out {one['leaves_out']}")
        else:
            print(f"  {one['sensor']:10}  not available: {one['reason']}; {one['cure']}")
    print(f'* is what energy = "auto" takes: {report["chosen"]}')
    seen = {**report["conditions"], "throttling": report["conditions"]["throttling"] or "none seen"}
    print(
        ", ".join(f"{name} {value if value not in (None, '') else 'unknown'}" for name, value in seen.items())
    )
    return 0


def _shown(one: dict[str, Any]) -> str:
    return "cannot be read just now" if one["value"] is None else f"{one['value']:.3f} {one['unit']}"


def sources(root: Path, profile_name: str = "auto") -> dict[str, Any]:
    """Return what `energy sources --json` prints."""
    profile = detect(root) if profile_name == "auto" else load(profile_name)
    conditions = watch(root)
    conditions.begin(0.0)
    seen = conditions.end(0.0)
    return {
        "root": str(root),
        "machine": machine_name(root),
        "profile": profile.name,
        "chosen": choose("auto", profile, root).about.name,
        "sources": [_described(kind, found) for kind, found in survey(profile, root)],
        "conditions": {
            "temperature_c": seen.temperature_c,
            "clock_mhz": seen.clock_mhz,
            "throttling": ",".join(seen.throttling),
            "power_mode": power_mode(root),
        },
    }


def _described(kind: str, found: Sensor | Unavailable) -> dict[str, Any]:
    if isinstance(found, Unavailable):
        return {
            "sensor": kind,
            "name": None,
            "is_available": False,
            "reason": found.reason,
            "cure": found.cure,
        }
    about = found.about
    return {
        "sensor": kind,
        "name": about.name,
        "is_available": True,
        "quantity": about.quantity,
        "unit": about.unit,
        "scope": about.scope,
        "covers": about.covers,
        "leaves_out": about.leaves_out,
        "value": _value(found),
        "resolution": about.accuracy.resolution,
        "uncertainty_relative": about.accuracy.relative,
        "offset_w": about.accuracy.offset_w,
        "period_s": about.period_s,
        "sample_s": about.sample_s,
        "tau_s": about.tau_s,
        "resolves_s": about.resolves_s,
    }


def _value(sensor: Sensor) -> float | None:
    """What it reads now; None for a gap, which it may have at any time."""
    try:
        return sensor.read().value
    except (OSError, ValueError):
        return None
