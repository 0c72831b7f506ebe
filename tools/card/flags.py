"""The flags of `sparsefleet card`, and what they and the environment say of one board."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from pathlib import Path

from protocol.broker_url import local_name
from protocol.errors import ConfigError
from protocol.examples import count
from protocol.tls import demand
from tools.card.settings import Settings, Wifi, password_hash, wifi
from tools.card.systems import OF_BOARD, SYSTEMS, System
from tools.device.client_file import client_file


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--board", required=True, help=f"one of {', '.join(sorted(OF_BOARD))}")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the card's boot partition, mounted, or an image file",
    )
    parser.add_argument(
        "--os", default="auto", choices=["auto", *SYSTEMS], help="default: what the card says"
    )
    parser.add_argument("--name", help="host name and client id; default: the board's")
    parser.add_argument(
        "--broker", metavar="URL", help="default: mqtts://THIS-HOST.local:8883, found by mDNS"
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="PEM",
        help="the broker's authority; default: that of `sparsefleet broker init`",
    )
    parser.add_argument("--plaintext", action="store_true", help="allow mqtt:// to another machine")
    parser.add_argument("--fleet", default="fleet")
    parser.add_argument("--username", default="device", help="the broker's; password in SPARSEFLEET_PASSWORD")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the board's examples")
    parser.add_argument(
        "--user", default="edge", help="who may log in; password in SPARSEFLEET_USER_PASSWORD"
    )
    parser.add_argument("--password-hash", default="", help="crypt(3) hash instead of that password")
    parser.add_argument(
        "--ssh-key", type=Path, action="append", default=[], metavar="PUB", help="may be repeated"
    )
    parser.add_argument("--wifi", metavar="SSID", help="the passphrase is in SPARSEFLEET_WIFI_PASSPHRASE")
    parser.add_argument("--wifi-country", default="", metavar="CC", help="such as DE; required with --wifi")
    parser.add_argument("--timezone", default="Etc/UTC")
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="sparsefleet's for aarch64; default: in dist/"
    )
    parser.add_argument(
        "--keep", action="store_true", help="Raspberry Pi Imager has set up the card: only add the client"
    )
    parser.add_argument(
        "--imager", type=Path, metavar="IMAGE", help="only write a list into DIR by which Imager 2 flashes it"
    )
    parser.add_argument("--dry-run", action="store_true", help="show every file, write and download nothing")
    parser.add_argument(
        "--force", action="store_true", help="write although DIR does not look like such a card"
    )
    parser.add_argument("--json", action="store_true")


def settings_of(options: argparse.Namespace, system: System) -> tuple[Settings, list[str]]:
    """Return what the flags and the environment say, and what the person should know of it."""
    from coordinator.admission import default_home  # A board has this file, but not what it imports.

    name = options.name or options.board
    broker = options.broker or f"mqtts://{local_name()}:8883"
    code, secret = os.environ.get("SPARSEFLEET_PAIRING_CODE", ""), os.environ.get("SPARSEFLEET_PASSWORD", "")
    demand(broker, options.plaintext)
    own_ca = default_home() / "ca" / "ca.pem"
    needs_ca = broker.startswith("mqtts://")
    ca = options.ca or (own_ca if needs_ca and own_ca.is_file() else None)
    for path in (*options.ssh_key, *(one for one in (ca, options.data) if one is not None)):
        if not path.is_file():
            raise ConfigError(f"{path} is not there")
    if options.data is not None:
        count(options.data)
    password = os.environ.get("SPARSEFLEET_USER_PASSWORD", "")
    network: Wifi | None = None
    if options.wifi is not None:
        network = wifi(options.wifi, os.environ.get("SPARSEFLEET_WIFI_PASSPHRASE", ""), options.wifi_country)
    hashed = options.password_hash or (password_hash(password) if password else "")
    settings = Settings(
        name=name,
        client=client_file(
            name, broker, options.fleet, options.username, secret, ca is not None, code, options.plaintext
        ),
        user=options.user,
        password_hash=hashed,
        ssh_keys=tuple(path.read_text().strip() for path in options.ssh_key),
        wifi=network,
        timezone=options.timezone,
        ca=None if ca is None else ca.read_bytes(),
        data=options.data,
        secrets=tuple(
            form
            for word in (secret, code, hashed, network.psk if network else "")
            if word
            for form in (word, json.dumps(word)[1:-1])
        ),
        instance=f"sparsefleet-{name}-{secrets.token_hex(4)}",
    )
    if needs_ca and ca is None and not options.dry_run:
        raise ConfigError(
            f"{own_ca} is not there yet: sparsefleet broker init makes it; --ca FILE is that of another broker"
        )
    notes = []
    sets_up = system.way != "ssh" and not options.keep
    if not settings.ssh_keys and not settings.password_hash and sets_up:
        notes.append("nobody can log in to the board: give --ssh-key FILE to be able to look after it")
    if options.data is None:
        notes.append("no examples: the client waits until you copy them to /var/lib/sparsefleet/data.npz")
    if network is None and sets_up:
        notes.append("no Wi-Fi: the board needs a cable")
    if needs_ca and ca is None:
        notes.append("no certificate authority yet: sparsefleet broker init")
    if not secret:
        notes.append("no SPARSEFLEET_PASSWORD: the broker that `sparsefleet run` starts asks devices for one")
    if not code:
        notes.append(
            "no pairing code: the coordinator lets no stranger in without one (sparsefleet fleet code)"
        )
    if secret or code or options.data is not None:
        notes.append("the card holds secrets until its first boot has removed them: keep it")
    return settings, notes
