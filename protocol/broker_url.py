"""Where a broker is: mqtt://host:port, or mqtts://host:port with TLS."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from protocol.errors import ConfigError

PORTS = {"mqtt": 1883, "mqtts": 8883}
EVERYWHERE = ("0.0.0.0", "::", "")  # Addresses to listen on, none to connect to.  # noqa: S104


def parse(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port.

    Raises:
        ConfigError: it is not of this form.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"broker URL {url!r}: {error}") from error
    if parts.username or parts.password:
        raise ConfigError("the broker URL contains a user name or password; give them on their own")
    if parts.scheme not in PORTS or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(f"broker URL {url!r}: write mqtt://host:port, or mqtts://host:port with TLS")
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme]


def is_loopback(url: str) -> bool:
    """Whether a broker URL stays within this machine.

    Raises:
        ConfigError: it is no broker URL.
    """
    return is_loopback_host(parse(url)[1])


def is_loopback_host(host: str) -> bool:
    """Whether a name or address, as it stands in a URL, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_name() -> str:
    """Return this machine's name in multicast DNS, by which boards on the same network find it."""
    return f"{socket.gethostname().partition('.')[0]}.local"
