"""sparsefleet broker: certificates for TLS, and configurations for brokers that run by themselves."""

from __future__ import annotations

import argparse
from pathlib import Path

from protocol.broker_url import local_name
from protocol.topics import Topics


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the parts and their options."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    text = "Make our own certificate authority, and the broker's certificate for the names of this machine."
    init = parts.add_parser("init", help=text, description=text)
    init.add_argument("--name", action="append", default=[], help="one more name or address of the broker")
    init.add_argument("--renew", action="store_true", help="a new certificate; devices need nothing new")
    init.set_defaults(run=_init)
    text = "Write a configuration: TLS, logins, access rules, limits; and what each device needs."
    config = parts.add_parser("config", help=text, description=text)
    config.add_argument("--kind", choices=["mosquitto", "amqtt"], default="mosquitto")
    config.add_argument("--out", type=Path, required=True, help="folder; the broker must be able to read it")
    config.add_argument(
        "--fleet", default="fleet", help="as in the experiment's broker.fleet; default: fleet"
    )
    config.add_argument("--host", help="by which devices reach the broker; default: this machine's name")
    config.add_argument("--port", type=int, default=8883)
    config.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="CLIENT_ID",
        help="a user of its own; else all share one",
    )
    config.add_argument(
        "--by-certificate", action="store_true", help="log in by certificate, not by password"
    )
    config.set_defaults(run=_config)
    for part in (init, config):
        part.add_argument(
            "--home", type=Path, help="the coordinator's folder; default: ~/.config/sparsefleet"
        )


def _home(options: argparse.Namespace) -> Path:
    from coordinator.admission import default_home

    home: Path = options.home or default_home()
    return home


def _init(options: argparse.Namespace) -> int:
    from coordinator.certificates import CA, own_names, server_files

    home = _home(options)
    certificate, _ = server_files(home, sorted({*own_names(), *options.name}), options.renew)
    print(f"authority: {home / 'ca' / CA} (bring it to each device, as [broker] ca)\nbroker: {certificate}")
    return 0


def _config(options: argparse.Namespace) -> int:
    from coordinator.broker_files import Login, write_amqtt, write_mosquitto
    from coordinator.certificates import own_names, server_files

    home, out = _home(options), options.out.resolve()
    host = options.host or local_name()
    server_files(home, sorted({*own_names(), host}))
    login = Login(tuple(options.device), options.by_certificate)
    write = write_mosquitto if options.kind == "mosquitto" else write_amqtt
    write(out, home, Topics(options.fleet), host, options.port, login)
    start = (
        f"mosquitto -c {out}/mosquitto.conf" if options.kind == "mosquitto" else f"amqtt -c {out}/amqtt.yaml"
    )
    print(
        f"{out}: written. Start it with: {start}\nthe coordinator needs {out}/coordinator/broker.toml in its "
        f"experiment, each device its folder below {out}/devices"
    )
    return 0
