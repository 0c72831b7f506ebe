"""sparsefleet fleet: who belongs to the fleet. Orders count at once, also for a coordinator that runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError
from protocol.pairing import new_code
from protocol.topics import check_name

if TYPE_CHECKING:  # A board has no coordinator, and every command builds this one's arguments.
    from coordinator.registry import Device, Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--home", type=Path, help="the coordinator's folder; default: ~/.config/sparsefleet")
    parser.add_argument(
        "--fleet", default="fleet", help="as in the experiment's broker.fleet; default: fleet"
    )
    orders = parser.add_subparsers(dest="order", required=True, metavar="COMMAND")
    listing = orders.add_parser("list", help="show the devices, and codes that can still be used")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)
    code = orders.add_parser("code", help="make a pairing code: whoever shows it is put on the list")
    code.add_argument("--uses", type=int, default=1, help="devices that it lets in; default 1")
    code.add_argument("--confirm", action="store_true", help="devices then wait for: fleet accept")
    code.add_argument(
        "--withdraw", action="store_true", help="make none; no code made so far can be used any more"
    )
    code.set_defaults(run=_code)
    for name, text, run in (
        ("accept", "let a device in that waits, or was revoked or quarantined", _accept),
        ("reject", "take a device off the list; with a new code it may come back", _reject),
        ("revoke", "keep a device out, for good", _revoke),
    ):
        order = orders.add_parser(name, help=text, description=text)
        order.add_argument("client_id")
        if name == "revoke":
            order.add_argument("--reason", default="by the operator")
        order.set_defaults(run=run)


def _home(options: argparse.Namespace) -> Path:
    from coordinator.admission import default_home

    return options.home or default_home()


def _registry(options: argparse.Namespace) -> Registry:
    from coordinator.registry import Registry

    return Registry(_home(options) / f"{check_name('fleet', options.fleet)}.db")


def _device(options: argparse.Namespace, registry: Registry) -> Device:
    device = registry.device(options.client_id)
    if device is None:
        names = ", ".join(one.client_id for one in registry.devices()) or "nobody"
        raise ConfigError(
            f"{options.client_id!r} is not on the list of fleet {options.fleet!r}; there is {names}"
        )
    return device


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from protocol.identity import fingerprint

    registry = _registry(options)
    devices, codes = registry.devices(), registry.codes()
    if options.json:
        rows = [
            {
                "client_id": one.client_id,
                "fingerprint": fingerprint(one.public_key),
                "status": one.status,
                "reason": one.reason,
                "sessions": [session.number for session in registry.sessions(one.client_id)[:1]],
            }
            for one in devices
        ]
        print(json.dumps({"devices": rows, "codes": sum(uses for uses, _ in codes.values())}))
        return 0
    table = Table("device", "key", "status", "why")
    for one in devices:
        table.add_row(one.client_id, fingerprint(one.public_key), one.status, one.reason)
    console = Console()
    console.print(table)
    console.print(
        f"codes can still let in {sum(uses for uses, _ in codes.values())} devices", highlight=False
    )
    return 0


def _code(options: argparse.Namespace) -> int:
    from protocol.identity import Key, fingerprint

    registry = _registry(options)
    if options.withdraw:
        registry.withdraw_codes()
        print("no code that was made so far can be used any more")
        return 0
    if not 1 <= options.uses <= 100_000:
        raise ConfigError(f"--uses {options.uses}: let in 1 to 100,000 devices")
    code = new_code()
    registry.add_code(code, options.uses, "pending" if options.confirm else "accepted")
    key = Key.load_or_make(_home(options))
    print(code)
    print(
        f'on the device: [identity] pairing_code = "{code}", or SPARSEFLEET_PAIRING_CODE; '
        f"the coordinator's key is {fingerprint(key.public)}"
    )
    return 0


def _accept(options: argparse.Namespace) -> int:
    registry = _registry(options)
    registry.put(replace(_device(options, registry), status="accepted", reason=""))
    print(f"{options.client_id} is let in")
    return 0


def _reject(options: argparse.Namespace) -> int:
    registry = _registry(options)
    registry.forget(_device(options, registry).client_id)
    print(f"{options.client_id} is off the list; with a new code it may come back")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    registry = _registry(options)
    registry.put(replace(_device(options, registry), status="revoked", reason=options.reason))
    print(f"{options.client_id} is kept out")
    return 0
