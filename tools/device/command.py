"""sparsefleet device: install, update, status, uninstall."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tools import wheelhouse
from tools.device import environment, systemd
from tools.device.client_file import client_file
from tools.device.environment import InstallFailed
from tools.device.install import Settings, Step, removal, steps
from tools.device.layout import NAMES, Layout
from tools.device.update import HEALTHY_S, update

VERSION = re.compile(r"[0-9]+(\.[0-9]+)*([a-z0-9.+]*)")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="COMMAND")
    install = parts.add_parser("install", help="make the client a service of this board")
    source = install.add_mutually_exclusive_group()
    source.add_argument("--wheels", type=Path, metavar="DIR", help="a wheelhouse: nothing is downloaded")
    source.add_argument("--wheel", metavar="FILE", help="sparsefleet's wheel; the rest is downloaded")
    settings = install.add_mutually_exclusive_group()
    settings.add_argument("--config", type=Path, metavar="FILE", help="the client's configuration")
    settings.add_argument("--broker", metavar="URL", help="mqtt://host:port or mqtts://host:port")
    install.add_argument("--client-id", default=socket.gethostname(), help="default: the host's name")
    install.add_argument("--fleet", default="fleet")
    install.add_argument("--username", default="device", help="the password is in SPARSEFLEET_PASSWORD")
    install.add_argument("--ca", type=Path, metavar="PEM", help="certificate authority of the broker")
    install.add_argument("--plaintext", action="store_true", help="allow mqtt:// to another machine")
    install.add_argument("--data", type=Path, metavar="FILE", help="the examples, which are copied")
    install.add_argument("--cpu-quota", type=int, metavar="PERCENT", help="ceiling; 100 is one core")
    install.add_argument("--no-start", action="store_true", help="from the next boot on")
    install.set_defaults(run=_install)
    newer = parts.add_parser("update", help="go over to another version; back if it is not well")
    newer.add_argument("what", help="a wheel, a version, or a wheelhouse folder")
    newer.add_argument("--healthy-s", type=float, default=HEALTHY_S, help="time to join; default 45")
    newer.add_argument("--now", action="store_true", help="also in the middle of a round")
    newer.set_defaults(run=_update)
    parts.add_parser("status", help="what is installed and how it is").set_defaults(run=_status)
    gone = parts.add_parser("uninstall", help="remove the client; its data stay")
    gone.add_argument("--purge", action="store_true", help="data, configuration and user too")
    gone.set_defaults(run=_uninstall)
    for part in (install, gone):
        part.add_argument("--dry-run", action="store_true", help="only list the steps")
    for part in parts.choices.values():
        part.add_argument("--root", type=Path, default=Path("/"), help="a file tree that stands for /")
        part.add_argument("--json", action="store_true")


def _install(options: argparse.Namespace) -> int:
    environment.check_machine()
    settings = Settings(
        config=_config(options),
        ca=_read(options.ca),
        data=options.data,
        cpu_quota=options.cpu_quota,
    )
    if options.data is not None and not options.data.is_file():
        raise InstallFailed(f"{options.data} is not there; --data is an .npz of examples")
    with tempfile.TemporaryDirectory() as folder:
        if options.wheels is not None:
            wheels = _wheels(options.wheels)
        elif options.wheel is None:
            raise InstallFailed("give --wheels DIR (made by `sparsefleet card`), or --wheel FILE")
        elif options.dry_run:
            wheels = [Path(options.wheel)]
        else:
            wheels = wheelhouse.download(options.wheel, Path(folder), wheelhouse.Target.here())
        return _take(steps(Layout(options.root), wheels, settings, not options.no_start), options)


def _update(options: argparse.Namespace) -> int:
    layout, what = Layout(options.root), Path(options.what)
    with tempfile.TemporaryDirectory() as temporary:
        if what.is_dir():
            wheels = _wheels(what)
        elif what.suffix == ".whl":
            wheels = [what.resolve()]
        elif VERSION.fullmatch(options.what):
            wheels = wheelhouse.one(f"sparsefleet=={options.what}", Path(temporary), layout.pip)
        else:
            raise InstallFailed(f"{what} is neither a wheel, nor a version, nor a folder of wheels")
        if not all(path.is_file() for path in wheels):
            raise InstallFailed(f"{what} is not there")
        done = update(
            layout,
            wheels,
            options.healthy_s,
            options.now,
            lambda text: print(text, file=sys.stderr),
        )
    if options.json:
        print(json.dumps({"environment": done.environment, "version": done.version, "before": done.before}))
    else:
        print(f"environment {done.environment} runs: {done.version}; {done.before} is kept for the way back")
    return 0


def _status(options: argparse.Namespace) -> int:
    layout = Layout(options.root)
    found: dict[str, object] = {"environment": layout.current, "is_on_trial": layout.trial.exists()}
    found["versions"] = {name: _version(layout, name) for name in NAMES if layout.python(name).exists()}
    if layout.root == Path("/") and layout.unit.exists():
        state = systemd.state()
        found |= {
            "active": state.active,
            "status": state.status,
            "restarts": state.restarts,
            "pid": state.pid,
        }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:>12}  {value}")
    return 0 if layout.current else 1


def _uninstall(options: argparse.Namespace) -> int:
    return _take(removal(Layout(options.root), options.purge), options)


def _take(planned: Iterable[Step], options: argparse.Namespace) -> int:
    """Take the steps one by one, or only list them."""
    done = []
    for step in planned:
        if not options.json:
            print(step.text, flush=True)
        if not options.dry_run:
            step.take()
        done.append(step.text)
    if options.json:
        print(json.dumps({"is_dry_run": options.dry_run, "steps": done}))
    return 0


def _wheels(folder: Path) -> list[Path]:
    found = sorted(folder.resolve().glob("*.whl"))
    if not found:
        raise InstallFailed(f"no wheels in {folder}; `sparsefleet card` writes a folder of them")
    return found


def _config(options: argparse.Namespace) -> bytes | None:
    """Return the configuration that is given, or made of the flags."""
    if options.config is not None:
        return _read(options.config)
    if options.broker is None:
        return None
    return client_file(
        options.client_id,
        options.broker,
        options.fleet,
        options.username,
        os.environ.get("SPARSEFLEET_PASSWORD", ""),
        options.ca is not None,
        os.environ.get("SPARSEFLEET_PAIRING_CODE", ""),
        options.plaintext,
    )


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InstallFailed(f"{path} cannot be read: {error.strerror}") from error


def _version(layout: Layout, name: str) -> str:
    """The version whose metadata lie in an environment; nothing is run."""
    found = sorted((layout.home / name).glob("lib/python*/site-packages/sparsefleet-*.dist-info"))
    return found[-1].name.removeprefix("sparsefleet-").removesuffix(".dist-info") if found else "damaged"
