"""Jetson: L4T has no cloud-init, and its own first boot is a dialogue.

Over ssh, to a board that has been through that dialogue, the folder is copied and its script run. Before
flashing, `Linux_for_Tegra/rootfs` gets the same folder and a unit that runs it once; the user is then made by
NVIDIA's tools/l4t_create_default_user.sh, which also skips the dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.card.network import keyfile
from tools.card.payload import File, payload
from tools.card.settings import Settings
from tools.card.systems import System

UNIT = "sparsefleet-first-boot.service"
UNIT_TEXT = """\
[Unit]
Description=Install the sparsefleet client once
ConditionPathExists={folder}/client.toml
After=local-fs.target

[Service]
Type=oneshot
ExecStart=/bin/sh {folder}/install.sh
TimeoutStartSec=900

[Install]
WantedBy=multi-user.target
"""


def over_ssh(settings: Settings, system: System, wheels: Sequence[Path]) -> list[File]:
    """Return the folder to copy."""
    return payload(settings, system, wheels)


def into_rootfs(settings: Settings, system: System, wheels: Sequence[Path]) -> list[File]:
    """Return what `Linux_for_Tegra/rootfs` gets."""
    units, folder = "etc/systemd/system", system.boot.lstrip("/")
    made = [
        File("etc/hostname", f"{settings.name}\n".encode()),
        File(f"{units}/{UNIT}", UNIT_TEXT.format(folder=system.boot).encode()),
        File(f"{units}/multi-user.target.wants/{UNIT}", link=f"/{units}/{UNIT}"),
    ]
    if settings.wifi is not None:
        path = "etc/NetworkManager/system-connections/sparsefleet.nmconnection"
        made.append(File(path, keyfile(settings.wifi).encode(), mode=0o600, is_secret=True))
    return made + payload(settings, system, wheels, folder)
