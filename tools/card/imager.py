"""An entry of Raspberry Pi Imager's list for an image that lies on this machine.

Imager 2 asks for the customisation of a local image only if a list says in which form the image takes it, and
version 1 writes a form that trixie ignores (raspberrypi/rpi-imager, doc/os_customisation_formats.md and
doc/schema-notes.md). With this list Imager flashes the image and sets up user and Wi-Fi; `sparsefleet card --keep`
then adds the client.
"""

from __future__ import annotations

import hashlib
import lzma
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from protocol.errors import ConfigError
from tools.card.systems import System

FILE = "sparsefleet.rpi-imager-manifest"
DEVICES = ["pi5-64bit", "pi4-64bit", "pi3-64bit"]
FORMS = {"firstrun": "systemd", "cloud-init": "cloudinit-rpi"}
CHUNK_BYTES = 1 << 20


def manifest(image: Path, system: System) -> dict[str, object]:
    """Return the list with one entry; the image is read, and unpacked if it ends in .xz, to hash it.

    Raises:
        ConfigError: it is not there, damaged, or not of a Raspberry Pi.
    """
    if system.way not in FORMS:
        raise ConfigError(f"{system.title} is not flashed by Raspberry Pi Imager")
    digest, size = hashlib.sha256(), 0
    try:
        with _opened(image) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        stat = image.stat()
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise ConfigError(f"{image} cannot be read: {error}") from error
    entry: dict[str, object] = {
        "name": f"sparsefleet: {system.title}",
        "description": f"{image.name}; afterwards: sparsefleet card --keep",
        "icon": "",
        "url": image.resolve().as_uri(),
        "extract_size": size,
        "extract_sha256": digest.hexdigest(),
        "image_download_size": stat.st_size,
        "release_date": datetime.fromtimestamp(stat.st_mtime, timezone.utc).strftime("%Y-%m-%d"),
        "devices": DEVICES,
        "init_format": "cloudinit" if system.is_ubuntu else FORMS[system.way],
    }
    return {"os_list": [entry]}


def _opened(image: Path) -> IO[bytes]:
    return lzma.open(image) if image.suffix == ".xz" else image.open("rb")
