"""Raspberry Pi OS trixie, and Ubuntu: cloud-init's NoCloud files on the boot partition."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.card.network import netplan
from tools.card.payload import FOLDER, File, payload
from tools.card.settings import Settings
from tools.card.systems import System

# A key that needs no quotes. What YAML 1.1 reads as a truth value or nothing, a network may be called.
_PLAIN = re.compile(r"[a-z][a-z0-9_-]*")
_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n")


def files(settings: Settings, system: System, wheels: Sequence[Path], cmdline: str) -> list[File]:
    """Return what the boot partition gets; `cmdline` is its cmdline.txt."""
    made = [
        File("user-data", user_data(settings, system).encode(), mode=0o600, is_secret=True),
        File("network-config", yaml(netplan(settings.wifi)).encode(), mode=0o600, is_secret=True),
        File("meta-data", yaml({"instance-id": settings.instance, "local-hostname": settings.name}).encode()),
    ]
    if not system.is_ubuntu:  # Whose images name the data source themselves.
        words = [word for word in cmdline.split() if not word.startswith("ds=nocloud")]
        line = " ".join([*words, f"ds=nocloud;i={settings.instance}"]) + "\n"
        made.append(File("cmdline.txt", line.encode()))
    return made + payload(settings, system, wheels)


def addition(settings: Settings, system: System, wheels: Sequence[Path]) -> list[File]:
    """Return what only adds the client to a card that Raspberry Pi Imager has customised.

    Vendor data that are a script are run once, after the user data have been.
    """
    text = f"#!/bin/sh\n{_install(system)}\n"
    return [File("vendor-data", text.encode(), mode=0o755), *payload(settings, system, wheels)]


def _install(system: System) -> str:
    return f"sh {system.boot}/{FOLDER}/install.sh >{system.boot}/{FOLDER}/first-boot.log 2>&1"


def user_data(settings: Settings, system: System) -> str:
    """Return the cloud-config."""
    # Singular: it is merged with the image's own user, who is in the groups of the hardware.
    user: dict[str, Any] = {
        "name": settings.user,
        "shell": "/bin/bash",
        "lock_passwd": not settings.password_hash,
    }
    if settings.password_hash:
        user["passwd"] = settings.password_hash
    if settings.ssh_keys:
        user["ssh_authorized_keys"] = list(settings.ssh_keys)
    config: dict[str, Any] = {
        "hostname": settings.name,
        "manage_etc_hosts": True,
        "timezone": settings.timezone,
        "user": user,
        "ssh_pwauth": bool(settings.password_hash),
    }
    if system.is_ubuntu:  # Names that end in .local; Raspberry Pi OS has it.
        config["packages"] = ["libnss-mdns"]
    commands: list[list[str]] = []
    if settings.ssh_keys or settings.password_hash:
        commands.append(["systemctl", "enable", "--now", "ssh"])
    commands.append(["sh", "-c", _install(system)])
    return "#cloud-config\n# Written by `sparsefleet card`.\n" + yaml({**config, "runcmd": commands})


def yaml(table: Mapping[str, Any], indent: str = "") -> str:
    """Return a mapping as YAML: block style for mappings; JSON, which YAML contains, for all else."""
    text = ""
    for key, value in table.items():
        name = key if _PLAIN.fullmatch(key) and key not in _WORDS else json.dumps(key)
        if isinstance(value, Mapping):
            text += f"{indent}{name}:\n{yaml(value, indent + '  ')}"
        elif isinstance(value, list):
            text += f"{indent}{name}:\n" + "".join(f"{indent}  - {json.dumps(entry)}\n" for entry in value)
        else:
            text += f"{indent}{name}: {json.dumps(value)}\n"
    return text
