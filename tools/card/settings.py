"""What the person at the keyboard decides about one board, checked; and the forms in which secrets are kept."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError

_HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?")
_HASH = re.compile(r"\$(6|y)\$[./A-Za-z0-9$]+")


@dataclass(frozen=True)
class Wifi:
    """A network; `psk` is the key that the passphrase stands for, as 64 hexadecimal digits."""

    ssid: str
    psk: str
    country: str  # Which channels are allowed: without it a Raspberry Pi keeps its radio off.


@dataclass(frozen=True)
class Settings:
    """One board."""

    name: str  # Host name and client id.
    client: bytes  # client.toml.
    user: str = "edge"
    password_hash: str = ""  # crypt(3), sha512 or yescrypt; empty: no password opens it.
    ssh_keys: tuple[str, ...] = ()
    wifi: Wifi | None = None
    timezone: str = "Etc/UTC"
    ca: bytes | None = None
    data: Path | None = None
    secrets: tuple[str, ...] = ()  # What a screen does not show of the files.
    instance: str = ""  # cloud-init runs once for each; a card that is prepared again is another one.

    def __post_init__(self) -> None:
        """Refuse what a board would stumble over at its first boot, where nobody looks.

        Raises:
            ConfigError: naming the setting and its form.
        """
        if not _HOST.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: a host name has a-z, 0-9 and -, at most 63 characters")
        if not _USER.fullmatch(self.user) or self.user == "root":
            raise ConfigError(f"--user {self.user!r}: a user has a-z, 0-9, _ and -, at most 32 characters")
        if self.password_hash and not _HASH.fullmatch(self.password_hash):
            raise ConfigError("--password-hash is no crypt(3) hash: mkpasswd -m sha512crypt makes one")
        for key in self.ssh_keys:
            if not _KEY.fullmatch(key):
                raise ConfigError(
                    f"--ssh-key: {key[:40]!r}... is no public key; it is the file that ends in .pub"
                )
        if not re.fullmatch(r"[A-Za-z0-9_+/-]+", self.timezone):
            raise ConfigError(f"--timezone {self.timezone!r}: such as Europe/Berlin")


def wifi(ssid: str, passphrase: str, country: str) -> Wifi:
    """Return the network; the passphrase does not go onto the card.

    Raises:
        ConfigError: none of the three may be so.
    """
    if not 1 <= len(ssid.encode()) <= 32 or any(ord(letter) < 32 for letter in ssid):
        raise ConfigError(f"--wifi {ssid!r}: a network's name has 1 to 32 bytes")
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise ConfigError("--wifi-country: two capitals, such as DE; without it the radio stays off")
    return Wifi(ssid, psk(ssid, passphrase), country)


def psk(ssid: str, passphrase: str) -> str:
    """Return WPA2's pre-shared key: PBKDF2 with HMAC-SHA1, 4096 times, of the SSID (IEEE 802.11-2020, J.4.1).

    Raises:
        ConfigError: it is neither a passphrase of 8 to 63 ASCII characters nor a key of 64 hexadecimal digits.
    """
    if re.fullmatch(r"[0-9A-Fa-f]{64}", passphrase):
        return passphrase.lower()
    if not re.fullmatch(r"[ -~]{8,63}", passphrase):
        raise ConfigError("SPARSEFLEET_WIFI_PASSPHRASE must have 8 to 63 ASCII characters")
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()


def password_hash(password: str) -> str:
    """Return sha512-crypt of a password, made by openssl: Python 3.13 has no crypt any more.

    Raises:
        ConfigError: there is no openssl that can.
    """
    program = shutil.which("openssl")
    advice = "give --password-hash, made by mkpasswd -m sha512crypt, or only --ssh-key"
    if program is None:
        raise ConfigError(f"openssl is not installed; {advice}")
    command = [program, "passwd", "-6", "-stdin"]
    done = subprocess.run(command, input=password, capture_output=True, text=True)
    if done.returncode != 0 or not _HASH.fullmatch(done.stdout.strip()):
        raise ConfigError(f"openssl cannot make a sha512-crypt hash; {advice}")
    return done.stdout.strip()
