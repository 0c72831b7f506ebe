"""sparsefleet doctor: what is missing, wrong or slow on this machine, each with its cure.

Without a configuration it looks at the machine alone; with a client's it also looks at that
client's examples, state and broker, with an experiment's at its artifact, data and broker. Nothing is
changed, and nothing is sent but a connection to the broker.

Exit codes: 0 all is well, 1 something could be better, 2 something does not work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from device_profiles import detect
from device_profiles.memory import available_bytes
from device_profiles.profile import UNKNOWN
from edge_client import break_even
from edge_client import config as clients
from edge_client.energy.choose import choose
from edge_client.energy.conditions import watch
from edge_client.kernels import library_path
from protocol import artifact as artifacts
from protocol import mqtt
from protocol.errors import SparsefleetError
from protocol.examples import count
from protocol.tls import Tls

if TYPE_CHECKING:
    from coordinator.experiment import BrokerConfig

Status = Literal["ok", "warn", "fail", "skipped"]
EXIT = {"ok": 0, "skipped": 0, "warn": 1, "fail": 2}

DISK_BYTES = 500_000_000  # An artifact, a run's state and the logs of some weeks.
MEMORY_BYTES = 150_000_000  # A LeNet's client takes 85 MB, an idle one 59.
# The clock of a board without a battery starts in the past; certificates are then not valid yet.
BUILT_S = 1_760_000_000


@dataclass(frozen=True)
class Check:
    """One finding."""

    check: str
    status: Status
    found: str
    cure: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--client", type=Path, metavar="FILE", help="this client's configuration")
    parser.add_argument("--experiment", type=Path, metavar="FILE", help="the coordinator's experiment")
    parser.add_argument("--root", type=Path, default=Path("/"), help="a file tree that stands for /")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print all checks; return the exit code."""
    checks = list(examine(options.root, options.client, options.experiment))
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            print(f"{check.status:>8}  {check.check}: {check.found}")
            if check.cure:
                print(f"{'':>8}  {'':>{len(check.check)}}  -> {check.cure}")
    return max(EXIT[check.status] for check in checks)


def examine(root: Path, client: Path | None = None, experiment: Path | None = None) -> Iterator[Check]:
    """Yield every check that applies."""
    checks: dict[str, Callable[[], Check]] = {
        "python": _python,
        "runtime": _runtime,
        "kernels": _kernels,
        "clock": _clock,
        "memory": _memory,
        "board": lambda: _board(root),
        "energy": lambda: _energy(root),
        "conditions": lambda: _conditions(root),
        "disk": lambda: _disk(Path.cwd() if client is None else Path(clients.read(client).state)),
    }
    if client is not None:
        checks["client"] = lambda: _client(client)
        checks["broker"] = lambda: _broker(**_login(clients.read(client).broker))
    if experiment is not None:
        checks["experiment"] = lambda: _experiment(experiment)
        checks["experiment's broker"] = lambda: _experiments_broker(experiment)
    for name, check in checks.items():
        try:
            yield check()
        except (SparsefleetError, OSError) as error:  # Whose texts name the cure.
            yield Check(name, "fail", str(error))


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.maxsize < 2**32:
        cure = "install a 64-bit system: onnxruntime has no 32-bit wheels"
        return Check("python", "fail", f"{found}, 32 bit", cure)
    return Check("python", "ok", found)


def _runtime() -> Check:
    from edge_client.ort import installed_package, onnxruntime

    versions = f"{installed_package()}, numpy {importlib.metadata.version('numpy')}"
    oldest = (1, 19)
    if tuple(int(part) for part in onnxruntime().__version__.split(".")[:2]) < oldest:
        return Check("runtime", "fail", versions, "pip install 'onnxruntime>=1.19.2'")
    return Check("runtime", "ok", versions)


def _kernels() -> Check:
    library = library_path()
    found = break_even.apply(library, Path("/nonexistent"))
    if found.startswith("baseline"):
        cure = "nothing to be done on a processor without AVX2; SPARSEFLEET_ISA may also be set"
        return Check("kernels", "warn", f"{found}: the slowest", cure)
    return Check("kernels", "ok", found)


def _clock() -> Check:
    text = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if time.time() < BUILT_S:
        return Check("clock", "fail", f"{text} is in the past", "timedatectl set-ntp true, and wait for it")
    return Check("clock", "ok", text)


def _memory() -> Check:
    free = available_bytes()
    text = f"{free / 1e6:.0f} MB available"
    if free < MEMORY_BYTES:
        return Check("memory", "warn", text, "stop other programs; boot without a desktop; smaller batches")
    return Check("memory", "ok", text)


def _disk(folder: Path) -> Check:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free at {there}"
    if free < DISK_BYTES:
        return Check("disk", "warn", text, "remove old runs and artifacts, or move the state folder")
    return Check("disk", "ok", text)


def _board(root: Path) -> Check:
    profile = detect(root)
    if profile.name == UNKNOWN:
        cure = "write device_profiles/<name>.toml, or set profile in the client's configuration"
        return Check("board", "warn", "unknown: safe defaults, and no model of its watts", cure)
    return Check("board", "ok", f"{profile.name}: {profile.description}")


def _energy(root: Path) -> Check:
    profile = detect(root)
    chosen = choose("auto", profile, root).about.name
    if chosen == "none" or "model" in chosen:
        cure = "sparsefleet energy sources says why each sensor is not read; docs/energy.md how to attach one"
        return Check("energy", "warn", f"not measured here, but {chosen}", cure)
    return Check("energy", "ok", f"measured by {chosen}")


def _conditions(root: Path) -> Check:
    conditions = watch(root)
    conditions.begin(0.0)
    seen = conditions.end(0.0)
    temperature = "unknown" if seen.temperature_c is None else f"{seen.temperature_c:.0f} °C"
    if seen.throttling:
        cure = "a stronger power supply for under-voltage; a heat sink or fan for the rest"
        return Check("conditions", "warn", f"{', '.join(seen.throttling)} at {temperature}", cure)
    return Check("conditions", "ok", f"temperature {temperature}, not throttled as far as can be told")


def _client(path: Path) -> Check:
    config = clients.read(path)
    return Check("client", "ok", f"{count(Path(config.data))} in {config.data}, client {config.client_id}")


def _experiment(path: Path) -> Check:
    from coordinator import experiment as experiments  # A board has no coordinator.

    experiment = experiments.read(path)
    experiment.build_method()
    manifest = artifacts.read(Path(experiment.artifact))
    test = Path(experiment.data) / "test.npz"
    found = f"{manifest.model}, {manifest.layout.num_trainable:,} parameters; {count(test)} examples to evaluate on"
    return Check("experiment", "ok", found)


def _experiments_broker(path: Path) -> Check:
    from coordinator import experiment as experiments

    broker = experiments.read(path).broker
    if not broker.url:
        return Check(
            "experiment's broker",
            "skipped",
            f"started inside `sparsefleet run`, on {broker.bind}:{broker.listens_on}",
        )
    return _broker(**_login(broker))


def _login(broker: clients.BrokerConfig | BrokerConfig) -> dict[str, str]:
    names = ("url", "username", "password", "ca", "certificate", "key")
    return {name: str(value) for name, value in msgspec.structs.asdict(broker).items() if name in names}


def _broker(url: str, username: str, password: str, **files: str) -> Check:
    begin_s = time.monotonic()
    # Not under the client's id: that would cut off the client which is running now.
    transport = mqtt.connect(url, f"{username}-doctor", username, password, tls=Tls(**files))
    transport.close()
    return Check(
        "broker", "ok", f"{url} accepted {username!r} in {1e3 * (time.monotonic() - begin_s):.0f} ms"
    )
