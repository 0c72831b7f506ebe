"""Raspberry Pi OS bookworm, and the first image of trixie: a script that the kernel's command line names.

systemd runs it as root before anything else of the first full boot, and restarts the board. The image's own
tools are used where they are (raspberrypi-sys-mods, userconf-pi), since they know its desktop and its sudo rules.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError
from tools.card.network import keyfile
from tools.card.payload import FOLDER, File, payload
from tools.card.settings import Settings
from tools.card.systems import System

SCRIPT = "firstrun.sh"
TOOL = "/usr/lib/raspberrypi-sys-mods/imager_custom"
MARK = "# Written by `sparsefleet card`."
USERCONF = "/usr/lib/userconf-pi/userconf"


def files(settings: Settings, system: System, wheels: Sequence[Path], cmdline: str) -> list[File]:
    """Return what the boot partition gets; `cmdline` is its cmdline.txt."""
    script = File(SCRIPT, script_text(settings, system).encode(), mode=0o755, is_secret=True)
    line = File("cmdline.txt", command_line(cmdline, system).encode())
    return [script, line, *payload(settings, system, wheels)]


def addition(settings: Settings, system: System, wheels: Sequence[Path], script: str) -> list[File]:
    """Return what only adds the client to a card that Raspberry Pi Imager has customised: its script, with ours in it.

    Raises:
        ConfigError: this is not a script of Imager's.
    """
    before, found, after = script.rpartition("\nrm -f /boot/")
    if not found or MARK in script:
        raise ConfigError(
            f"--keep: the card's {SCRIPT} is not Raspberry Pi Imager's; without --keep it is replaced"
        )
    line = f"\nsh {system.boot}/{FOLDER}/install.sh --no-start >{system.boot}/{FOLDER}/first-boot.log 2>&1"
    text = before.replace(line, "") + line + found + after
    return [File(SCRIPT, text.encode(), mode=0o755, is_secret=True), *payload(settings, system, wheels)]


def command_line(cmdline: str, system: System) -> str:
    """Return the kernel's command line with the script named once."""
    words = [word for word in cmdline.split() if not word.startswith(("systemd.run", "systemd.unit="))]
    words += [f"systemd.run={system.boot}/{SCRIPT}", "systemd.run_success_action=reboot"]
    return " ".join([*words, "systemd.unit=kernel-command-line.target"]) + "\n"


def script_text(settings: Settings, system: System) -> str:
    """Return the script. It goes on where a step fails: a board that can be reached beats one that cannot."""
    q, boot = shlex.quote, system.boot
    name, user = q(settings.name), q(settings.user)
    lines = [
        "#!/bin/sh",
        f"{MARK} Configures this board once, then removes itself.",
        "# shellcheck disable=SC2016  # A password's hash has dollar signs.",
        f"exec >>{boot}/{FOLDER}/first-boot.log 2>&1",
        'step() { echo "== $1"; }',
        "",
        "step 'host name'",
        f"if test -x {TOOL}; then {TOOL} set_hostname {name}; else",
        f"    echo {name} >/etc/hostname",
        "    sed -i '/^127\\.0\\.1\\.1/d' /etc/hosts",
        f"    echo '127.0.1.1 '{name} >>/etc/hosts",
        "fi",
        "",
        "step 'user'",
        f"if test -x {USERCONF}; then {USERCONF} {user} {q(settings.password_hash or '*')}; else",
        f"    id -u {user} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash {user}",
        f"    echo {q(f'{settings.user}:{settings.password_hash or chr(42)}')} | chpasswd --encrypted",
        f"    usermod --append --groups sudo {user}",
        "fi",
    ]
    if settings.ssh_keys:
        lines += [
            "",
            "step 'ssh'",
            f"home=$(getent passwd {user} | cut -d: -f6)",
            f'install -d -m 700 -o {user} -g {user} "$home/.ssh"',
            f"printf '%s\\n' {' '.join(q(key) for key in settings.ssh_keys)} >\"$home/.ssh/authorized_keys\"",
            f'chown {user}:{user} "$home/.ssh/authorized_keys"',
            'chmod 600 "$home/.ssh/authorized_keys"',
        ]
    if settings.ssh_keys or settings.password_hash:
        lines += ["systemctl enable ssh"]
    if settings.wifi is not None:
        lines += [
            "",
            "step 'wifi'",
            "if command -v raspi-config >/dev/null; then",
            f"    raspi-config nonint do_wifi_country {settings.wifi.country}",
            "fi",
            "umask 077",
            "mkdir -p /etc/NetworkManager/system-connections",
            "cat >/etc/NetworkManager/system-connections/sparsefleet.nmconnection <<'END'",
            *keyfile(settings.wifi).splitlines(),
            "END",
            "umask 022",
            "if command -v rfkill >/dev/null; then rfkill unblock wifi; fi",
        ]
    lines += [
        "",
        "step 'time zone'",
        f"ln -sf /usr/share/zoneinfo/{settings.timezone} /etc/localtime",
        f"echo {settings.timezone} >/etc/timezone",
        "",
        "step 'sparsefleet'",
        f"sh {boot}/{FOLDER}/install.sh --no-start || echo 'sparsefleet was not installed'",
        "",
        f"rm -f {boot}/{SCRIPT}",
        f"sed -i 's| systemd\\.[^ ]*||g' {boot}/cmdline.txt",
        "exit 0",
    ]
    return "\n".join(lines) + "\n"
