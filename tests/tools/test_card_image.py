"""An image file instead of a mounted card, made and read by mtools."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.tools.test_card import BOOKWORM, TRIXIE, boot_partition
from tools import wheelhouse
from tools.cli import main

START, SECTORS = 8192, 65536 * 2  # FAT32 begins at 64 MiB.

pytestmark = pytest.mark.skipif(
    shutil.which("mcopy") is None, reason="mtools is not installed: tools/install-test-tools"
)


def mtools(*command: str) -> str:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def flashed(folder: Path, sectors: int = SECTORS, **files: str) -> tuple[Path, str]:
    """Return an image as it is downloaded, with a boot partition behind 4 MiB, and mtools' name for that."""
    image = folder / "raspios.img"
    with image.open("wb") as file:
        file.truncate((START + sectors) * 512)
        for number, (kind, start) in enumerate([(0x0C, START), (0x83, START + sectors)]):
            file.seek(446 + 16 * number)
            file.write(struct.pack("<4xB3xII", kind, start, sectors))
        file.seek(510)
        file.write(b"\x55\xaa")
    drive = f"{image}@@{START * 512}"
    mtools("mformat", "-i", drive, "-T", str(sectors), "-h", "64", "-s", "32", "::")
    card = boot_partition(folder / "card", **files)
    mtools("mcopy", "-i", drive, *map(str, card.iterdir()), "::")
    return image, drive


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Two wheels instead of a download."""
    paths = [tmp_path / f"part{n}-1.0-py3-none-any.whl" for n in range(2)]
    for path in paths:
        path.write_bytes(os.urandom(500_000))
    own = tmp_path / "sparsefleet-1.0-py3-none-manylinux_2_27_aarch64.whl"
    own.write_bytes(b"")
    monkeypatch.setattr(wheelhouse, "download", lambda *_: paths)
    return own


def card(image: Path, wheel: Path, *more: str) -> int:
    flags = ["--board", "rpi5", "--wheel", str(wheel), "--broker", "mqtt://laptop.local", "--plaintext"]
    return main(["card", "--out", str(image), "--name", "edge-7", *flags, *more])


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({"issue_txt": BOOKWORM}, "firstrun.sh", "edge-7"),
        ({"issue_txt": TRIXIE, "user_data": "#cloud-config\n"}, "user-data", "edge-7"),
    ],
)
def test_a_board_is_set_up_in_an_image(files, path, words, tmp_path, wheels):
    image, drive = flashed(tmp_path, **files)
    first = image.read_bytes()[: START * 512]
    assert card(image, wheels) == 0
    assert words in mtools("mtype", "-i", drive, f"::{path}")
    assert 'client_id = "edge-7"' in mtools("mtype", "-i", drive, "::sparsefleet/client.toml")
    assert mtools("mtype", "-i", drive, "::config.txt") == "arm_64bit=1\n"
    got = tmp_path / "got"
    got.mkdir()
    mtools("mcopy", "-s", "-i", drive, "::sparsefleet/wheels", str(got))
    for part in tmp_path.glob("part*.whl"):
        assert (got / "wheels" / part.name).read_bytes() == part.read_bytes()
    assert image.read_bytes()[: START * 512] == first
    assert card(image, wheels, "--name", "edge-8") == 0  # Again: it replaces what was there.
    assert 'client_id = "edge-8"' in mtools("mtype", "-i", drive, "::sparsefleet/client.toml")


def test_a_dry_run_reads_the_image_and_writes_nothing(tmp_path, wheels, capsys):
    image, _ = flashed(tmp_path, issue_txt=TRIXIE)
    before = image.read_bytes()
    assert card(image, wheels, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["os"] == "trixie"
    assert image.read_bytes() == before


def test_what_does_not_fit_is_not_begun(tmp_path, wheels, capsys):
    image, drive = flashed(tmp_path, sectors=70_000, issue_txt=BOOKWORM)
    (tmp_path / "filler").write_bytes(bytes(35_000_000))
    mtools("mcopy", "-i", drive, str(tmp_path / "filler"), "::")
    before = image.read_bytes()
    assert card(image, wheels) == 2
    assert "MB free, 1 MB are needed; nothing was written" in capsys.readouterr().err
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xfd7zXZ\x00" + bytes(1000), "unpack a compressed one first"),
        (b"", "not a disk image"),
        (bytes(510) + b"\x55\xaa" + bytes(100), "not a disk image"),
    ],
)
def test_what_is_no_image_is_refused(content, words, tmp_path, wheels, capsys):
    image = tmp_path / "x.img"
    image.write_bytes(content)
    assert card(image, wheels) == 2
    assert words in capsys.readouterr().err


def test_another_card_in_an_image_is_named_by_the_image(tmp_path, wheels, capsys):
    image, _ = flashed(tmp_path, issue_txt=BOOKWORM.replace("2025", "2022"))
    assert card(image, wheels) == 2
    err = capsys.readouterr().err
    assert f"{image} holds Raspberry Pi OS of 2022-05" in err


def test_without_mtools_it_says_how_to_get_them(tmp_path, wheels, capsys, monkeypatch):
    image, _ = flashed(tmp_path, issue_txt=BOOKWORM)
    monkeypatch.setenv("PATH", "/nowhere")
    assert card(image, wheels) == 2
    assert "apt install mtools" in capsys.readouterr().err
