"""The systems that boards are flashed with: their Python, their C library, and how they are configured.

From the distributions' releases; of the first boots, raspberrypi/rpi-imager's doc/os_customisation_formats.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.errors import ConfigError
from tools.wheelhouse import Target

Way = Literal["firstrun", "cloud-init", "ssh", "rootfs"]


@dataclass(frozen=True)
class System:
    """One system. `boot` is where it mounts what we write."""

    title: str
    target: Target
    way: Way
    boot: str = "/boot/firmware"
    is_ubuntu: bool = False


SYSTEMS = {
    "bookworm": System("Raspberry Pi OS 12 (bookworm), 64-bit", Target("3.11", glibc=36), "firstrun"),
    "trixie": System("Raspberry Pi OS 13 (trixie), 64-bit", Target("3.13", glibc=41), "cloud-init"),
    "ubuntu-22.04": System(
        "Ubuntu 22.04 for Raspberry Pi", Target("3.10", glibc=35), "cloud-init", is_ubuntu=True
    ),
    "ubuntu-24.04": System(
        "Ubuntu 24.04 for Raspberry Pi", Target("3.12", glibc=39), "cloud-init", is_ubuntu=True
    ),
    # Their own Python is 3.6 and 3.8; uv's 3.11 beside it runs on their C library.
    "jetpack4": System("JetPack 4", Target("3.11", glibc=27), "ssh", "/opt/sparsefleet-setup"),
    "jetpack5": System("JetPack 5", Target("3.11", glibc=31), "ssh", "/opt/sparsefleet-setup"),
    "jetpack6": System("JetPack 6", Target("3.10", glibc=35), "ssh", "/opt/sparsefleet-setup"),
    "jetpack7": System("JetPack 7", Target("3.12", glibc=39), "ssh", "/opt/sparsefleet-setup"),
}

# The first choice is what `auto` means where a card does not say.
OF_BOARD = {
    **dict.fromkeys(
        ("rpi-zero2w", "rpi3bplus", "rpi4b", "rpi-cm4", "rpi5", "rpi-cm5"),
        ("trixie", "bookworm", "ubuntu-24.04", "ubuntu-22.04"),
    ),
    **dict.fromkeys(("jetson-nano", "jetson-tx2"), ("jetpack4",)),
    **dict.fromkeys(("jetson-xavier-nx", "jetson-agx-xavier"), ("jetpack5",)),
    **dict.fromkeys(
        ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"), ("jetpack6", "jetpack7", "jetpack5")
    ),
}

_TRIXIE = (2025, 10)  # The month of its first image, which is still configured by firstrun.sh.


def find(board: str, name: str, card: Path) -> tuple[str, System, Way]:
    """Return the system's name, the system, and the way in: by what lies on the card, as far as it says.

    Raises:
        ConfigError: no such board or system, or the card holds another one.
    """
    if board not in OF_BOARD:
        raise ConfigError(f"no card is prepared for {board!r}; known are {', '.join(sorted(OF_BOARD))}")
    fitting = OF_BOARD[board]
    if name not in ("auto", *fitting):
        raise ConfigError(f"{board} runs {', '.join(fitting)} here, not {name!r}")
    seen = _on_card(card)
    if seen is not None and name not in ("auto", seen):
        raise ConfigError(f"{card} holds {SYSTEMS[seen].title}, not {name}; give the right one, or --os auto")
    if seen is not None and seen not in fitting:
        raise ConfigError(f"{card} holds {SYSTEMS[seen].title}, which {board} does not run here")
    if (
        name == "auto"
        and seen is None
        and (card / "user-data").is_file()
        and not (card / "issue.txt").is_file()
    ):
        raise ConfigError(
            f"{card} is a card of Ubuntu, which does not say of which release: give --os ubuntu-24.04"
        )
    chosen = seen or (fitting[0] if name == "auto" else name)
    system = SYSTEMS[chosen]
    if system.way == "ssh":
        return chosen, system, "rootfs" if (card / "etc/nv_tegra_release").is_file() else "ssh"
    if seen is not None:
        return chosen, system, "cloud-init" if (card / "user-data").is_file() else "firstrun"
    return chosen, system, system.way


def _on_card(card: Path) -> str | None:
    """Raspberry Pi OS writes the image's date into issue.txt; others do not say what they are."""
    path = card / "issue.txt"
    found = (
        re.search(r"Raspberry Pi reference (\d{4})-(\d{2})-\d{2}", path.read_text())
        if path.is_file()
        else None
    )
    if found is None:
        return None
    date = int(found[1]), int(found[2])
    if date < (2023, 10):
        raise ConfigError(
            f"{card} holds Raspberry Pi OS of {found[1]}-{found[2]}, with Python 3.9: flash a newer one"
        )
    return "trixie" if date >= _TRIXIE else "bookworm"


def is_boot_partition(card: Path, way: Way) -> bool:
    """Whether this is where the files belong: nothing is written to another place unless forced."""
    if way == "ssh":
        return not card.exists() or (card.is_dir() and not any(card.iterdir()))
    if way == "rootfs":
        return (card / "etc/nv_tegra_release").is_file()
    return all((card / name).is_file() for name in ("cmdline.txt", "config.txt"))
