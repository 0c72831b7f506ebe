"""A Wi-Fi network in the forms that systems read: NetworkManager's keyfile, and netplan's YAML."""

from __future__ import annotations

import re

from tools.card.settings import Wifi


def keyfile(wifi: Wifi) -> str:
    """Return a NetworkManager connection; it is ignored unless its mode is 0600."""
    # A list of bytes where a letter would mean something in a keyfile.
    is_plain = re.fullmatch(r"[A-Za-z0-9_.-]([A-Za-z0-9 _.-]*[A-Za-z0-9_.-])?", wifi.ssid)
    ssid = wifi.ssid if is_plain else "".join(f"{byte};" for byte in wifi.ssid.encode())
    return (
        "[connection]\nid=sparsefleet\ntype=wifi\n\n"
        f"[wifi]\nmode=infrastructure\nssid={ssid}\n\n"
        f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={wifi.psk}\n\n"
        "[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n"
    )


def netplan(wifi: Wifi | None) -> dict[str, object]:
    """Return version 2 of a network configuration; neither interface holds up the boot.

    The wired one is named too: it would be lost otherwise.
    """
    found: dict[str, object] = {
        "version": 2,
        "ethernets": {"eth0": {"dhcp4": True, "optional": True}},
    }
    if wifi is not None:
        found["wifis"] = {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": wifi.country,
                "access-points": {wifi.ssid: {"password": wifi.psk}},
            }
        }
    return found
