"""sparsefleet card: prepare a flashed card, so that its board joins the fleet at its first boot."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError
from protocol.examples import count
from protocol.tls import demand
from tools import wheelhouse
from tools.card import cloud_init, firstrun, imager, jetson
from tools.card.payload import File
from tools.card.settings import Settings, Wifi, password_hash, wifi
from tools.card.systems import OF_BOARD, SYSTEMS, System, Way, find, is_boot_partition
from tools.device.client_file import client_file

PLAIN_CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=... rootfstype=ext4 rootwait\n"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--board", required=True, help=f"one of {', '.join(sorted(OF_BOARD))}")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the card's boot partition, mounted"
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the card, or show what would be written."""
    if options.imager is not None:
        return _list_for_imager(options)
    chosen, system, way = find(options.board, options.os, options.out)
    if not options.dry_run and not options.force and not is_boot_partition(options.out, way):
        looks = {"ssh": "a new or empty folder", "rootfs": "L4T's rootfs"}.get(
            way, "a boot partition (cmdline.txt, config.txt)"
        )
        raise ConfigError(
            f"{options.out} is not {looks}; nothing was written. Is the card mounted there? --force writes"
        )
    settings, notes = _settings(options, system)
    with tempfile.TemporaryDirectory() as folder:
        wheels = (
            [] if options.dry_run else wheelhouse.download(str(_wheel(options)), Path(folder), system.target)
        )
        if options.keep:
            files = _addition(settings, system, way, wheels, options.out)
        else:
            files = _files(settings, system, way, wheels, options.out)
        if not options.dry_run:
            write(files, options.out)
    if way == "ssh":
        notes.append(
            f"copy it: scp -r {options.out}/sparsefleet USER@BOARD: && ssh -t USER@BOARD sudo sh sparsefleet/install.sh"
        )
    elif way == "rootfs":
        notes.append(
            f"before flash.sh: tools/l4t_create_default_user.sh -u {settings.user} -n {settings.name} --accept-license"
        )
    report = {
        "board": options.board,
        "os": chosen,
        "way": way,
        "python": system.target.python,
        "name": settings.name,
        "is_dry_run": options.dry_run,
        "files": [_described(file, settings) for file in files],
        "wheels": f"{_wheel_name(options)}[device] for Python {system.target.python}, glibc 2.{system.target.glibc}",
        "notes": notes,
    }
    if options.json:
        print(json.dumps(report))
    else:
        _show(report, options)
    return 0


def _list_for_imager(options: argparse.Namespace) -> int:
    """Write the list, or print it: it has no other effect, and no secret."""
    _, system, _ = find(options.board, options.os, Path())
    text = json.dumps(imager.manifest(options.imager, system), indent=1)
    if options.dry_run or options.json:
        print(text)
    if not options.dry_run:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / imager.FILE).write_text(text + "\n")
        if not options.json:
            print(
                f"{options.out / imager.FILE}: flash with it in Raspberry Pi Imager 2; then sparsefleet card --keep"
            )
    return 0


def _files(settings: Settings, system: System, way: Way, wheels: Sequence[Path], card: Path) -> list[File]:
    if way == "ssh":
        return jetson.over_ssh(settings, system, wheels)
    if way == "rootfs":
        return jetson.into_rootfs(settings, system, wheels)
    path = card / "cmdline.txt"
    cmdline = path.read_text() if path.is_file() else PLAIN_CMDLINE
    if way == "cloud-init":
        return cloud_init.files(settings, system, wheels, cmdline)
    return firstrun.files(settings, system, wheels, cmdline)


def _addition(settings: Settings, system: System, way: Way, wheels: Sequence[Path], card: Path) -> list[File]:
    if way == "cloud-init" and (card / "user-data").is_file():
        return cloud_init.addition(settings, system, wheels)
    script = card / firstrun.SCRIPT
    if way == "firstrun" and script.is_file():
        return firstrun.addition(settings, system, wheels, script.read_text())
    raise ConfigError(f"--keep: Raspberry Pi Imager has set up nothing on {card}")


def write(files: Sequence[File], card: Path) -> None:
    """Write the files below a folder; what an earlier run has left of ours is replaced.

    Raises:
        ConfigError: they do not fit; nothing was written.
    """
    card.mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.num_bytes for file in files), shutil.disk_usage(card).free
    if needed > free:
        raise ConfigError(f"{card} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed")
    for file in files:
        path = card / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if file.link:
            path.symlink_to(file.link)
            continue
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, file.mode)
        with os.fdopen(descriptor, "wb") as target:
            target.write(file.content if file.source is None else file.source.read_bytes())
        path.chmod(file.mode)
    os.sync()


def _settings(options: argparse.Namespace, system: System) -> tuple[Settings, list[str]]:
    """Return what the flags and the environment say, and what the person should know of it."""
    from coordinator.admission import default_home  # A board has this file, but not what it imports.

    name = options.name or options.board
    broker = options.broker or f"mqtts://{socket.gethostname().partition('.')[0]}.local:8883"
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
    if not code:
        notes.append(
            "no pairing code: the coordinator lets no stranger in without one (sparsefleet fleet code)"
        )
    if secret or code or options.data is not None:
        notes.append("the card holds secrets until its first boot has removed them: keep it")
    return settings, notes


def _wheel_name(options: argparse.Namespace) -> str:
    return "sparsefleet" if options.wheel is None else str(options.wheel)


def _wheel(options: argparse.Namespace) -> Path:
    if options.wheel is not None:
        found = [options.wheel] if options.wheel.is_file() else []
    else:
        found = sorted(Path("dist").glob("sparsefleet-*aarch64.whl"))
    if not found or "aarch64" not in found[-1].name:
        where = options.wheel or "dist/"
        raise ConfigError(f"{where}: no wheel of sparsefleet for aarch64; `make wheels` builds it")
    return Path(found[-1])


def _described(file: File, settings: Settings) -> dict[str, object]:
    """A file as people and programs are shown it: its text, with stars for secrets."""
    found: dict[str, object] = {"path": file.path, "bytes": file.num_bytes, "mode": f"{file.mode:04o}"}
    if file.link or file.source is not None:
        return {**found, "is_secret": file.is_secret, "link": file.link, "text": None}
    text = file.content.decode()
    for secret in settings.secrets:
        text = text.replace(secret, "***")
    return {**found, "is_secret": file.is_secret, "link": "", "text": text}


def _show(report: dict[str, object], options: argparse.Namespace) -> None:
    verb = "would be written" if options.dry_run else "written"
    print(f"{options.out}: {report['os']} on {options.board}, {report['way']}; {verb}:")
    for file in report["files"]:  # type: ignore[attr-defined]
        print(f"{file['bytes']:>10}  {file['path']}{'  (secret)' if file.get('is_secret') else ''}")
        if options.dry_run and file.get("text"):
            print("".join(f"{'':>12}{line}\n" for line in file["text"].splitlines()), end="")
    if options.dry_run:
        print(f"{'':>10}  and wheels: {report['wheels']}")
    for note in report["notes"]:  # type: ignore[attr-defined]
        print(f"note: {note}")
