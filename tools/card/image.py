"""An image file in place of a mounted card: its boot partition, through a folder and mtools, without root.

mtools reads and writes a FAT file system at an offset of a file (`-i FILE@@OFFSET`); the offset is in the
image's partition table.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import ConfigError

SECTOR = 512
# Partition types of FAT16 and FAT32 (https://en.wikipedia.org/wiki/Partition_type), and an EFI system partition.
FAT_TYPES = (0x06, 0x0B, 0x0C, 0x0E, 0xEF)
# What of a boot partition is read before something is written: which system it holds, and how it starts.
READ = ("issue.txt", "config.txt", "cmdline.txt", "user-data", "network-config", "meta-data", "firstrun.sh")


@contextlib.contextmanager
def opened(out: Path, is_dry_run: bool) -> Iterator[Path]:
    """Yield the folder to write to: `out`, or for an image file one whose files are put into it at the end.

    Raises:
        ConfigError: no image with a boot partition, mtools is missing, or the files do not fit.
    """
    if not out.is_file():
        yield out
        return
    drive = f"{out}@@{_offset(out)}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = _names(drive)
        for file in READ:
            if file in there:
                _mtools("mcopy", "-i", drive, f"::{file}", str(folder))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        try:
            yield folder
        except ConfigError as error:
            raise ConfigError(str(error).replace(name, str(out))) from error
        changed = [
            path for path in folder.iterdir() if path.is_dir() or before.get(path) != path.read_bytes()
        ]
        if changed and not is_dry_run:
            _put(drive, out, changed)


def _put(drive: str, out: Path, paths: list[Path]) -> None:
    files = [path for top in paths for path in (top, *top.rglob("*")) if path.is_file()]
    needed, free = sum(path.stat().st_size for path in files), _free(drive)
    if needed > free:
        raise ConfigError(
            f"the boot partition of {out} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed; "
            "nothing was written"
        )
    # Written in place: an image has gigabytes, and a copy that was cut is made again by the same command.
    _mtools("mcopy", "-o", "-s", "-Q", "-i", drive, *map(str, sorted(paths)), "::")


def _offset(image: Path) -> int:
    """Bytes to the first FAT partition of a master boot record."""
    with image.open("rb") as file:
        record = file.read(SECTOR)
    if len(record) == SECTOR and record[510:] == b"\x55\xaa":
        for number in range(4):
            kind, start = struct.unpack_from("<4xB3xI", record, 446 + 16 * number)
            if kind in FAT_TYPES and start:
                return int(start) * SECTOR
    raise ConfigError(
        f"{image} is not a disk image with a FAT boot partition: unpack a compressed one first (unxz -k, "
        "zstd -d, unzip); an image of a Jetson has none, use --out Linux_for_Tegra/rootfs"
    )


def _names(drive: str) -> set[str]:
    return set(_mtools("mdir", "-b", "-i", drive, "::").replace("::/", "").split("\n"))


def _free(drive: str) -> int:
    found = re.search(r"([\d ]+) bytes free", _mtools("mdir", "-i", drive, "::"))
    return int(found[1].replace(" ", "")) if found else 0


def _mtools(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"{command[0]} is not installed, which reads and writes image files: apt install mtools "
            "(brew install mtools), or mount the image and give its boot partition"
        )
    # Raspberry Pi's images count sectors in a way that mtools finds odd.
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ConfigError(f"{command[0]}: {done.stderr.strip() or 'it failed'}")
    return done.stdout
