"""sparsefleet card: prepare a flashed card, so that its board joins the fleet at its first boot."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError
from tools import wheelhouse
from tools.card import cloud_init, firstrun, image, imager, jetson
from tools.card.flags import add_flags, settings_of
from tools.card.payload import File
from tools.card.settings import Settings
from tools.card.systems import System, Way, find, is_boot_partition

PLAIN_CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=... rootfstype=ext4 rootwait\n"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the card, or show what would be written."""
    if options.imager is not None:
        return _list_for_imager(options)
    with image.opened(options.out, options.dry_run) as card:
        report = _prepare(options, card)
    if options.json:
        print(json.dumps(report))
    else:
        _show(report, options)
    return 0


def _prepare(options: argparse.Namespace, card: Path) -> dict[str, object]:
    """Write below the folder `card`, unless it is a dry run; return what is shown."""
    chosen, system, way = find(options.board, options.os, card)
    if not options.dry_run and not options.force and not is_boot_partition(card, way):
        looks = {"ssh": "a new or empty folder", "rootfs": "L4T's rootfs"}.get(
            way, "a boot partition (cmdline.txt, config.txt)"
        )
        raise ConfigError(
            f"{options.out} is not {looks}; nothing was written. Is the card mounted there? --force writes"
        )
    settings, notes = settings_of(options, system)
    with tempfile.TemporaryDirectory() as folder:
        wheels = (
            [] if options.dry_run else wheelhouse.download(str(_wheel(options)), Path(folder), system.target)
        )
        if options.keep:
            files = _addition(settings, system, way, wheels, card)
        else:
            files = _files(settings, system, way, wheels, card)
        if not options.dry_run:
            write(files, card)
        described = [_described(file, settings) for file in files]
    if way == "ssh":
        notes.append(
            f"copy it: scp -r {options.out}/sparsefleet USER@BOARD: && ssh -t USER@BOARD sudo sh sparsefleet/install.sh"
        )
    elif way == "rootfs":
        notes.append(
            f"before flash.sh: tools/l4t_create_default_user.sh -u {settings.user} -n {settings.name} --accept-license"
        )
    return {
        "board": options.board,
        "os": chosen,
        "way": way,
        "python": system.target.python,
        "name": settings.name,
        "is_dry_run": options.dry_run,
        "files": described,
        "wheels": f"{_wheel_name(options)}[device] for Python {system.target.python}, glibc 2.{system.target.glibc}",
        "notes": notes,
    }


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
