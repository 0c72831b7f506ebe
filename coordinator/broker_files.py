"""Configurations for brokers that run by themselves: TLS, logins, who may do what, and limits.

    mosquitto.conf, acl, passwords      for mosquitto
    amqtt.yaml                          for aMQTT, with our plugin for logins and access rules
    server.pem, server.key, ca.pem      copies, so that the folder can be brought elsewhere
    devices/<name>/                     what each device needs: broker.toml, ca.pem, and its certificate, if it has one

Where devices have users of their own, the user name decides what one may publish, and is the MQTT client id; with
one user for all it is the client id that decides, which any of them may choose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from coordinator.broker import COORDINATOR_USER, MAX_CONNECTIONS, MAX_PACKET_BYTES, Gate
from coordinator.certificates import CA, SERVER, SERVER_KEY, Authority, server_files
from protocol.durable import replace_file
from protocol.errors import ConfigError
from protocol.toml import dumps
from protocol.topics import CLIENT, TABLE, Topics, check_name

DEVICE_USER = "device"  # Of all devices, where none has a user of its own.
QUEUED_MESSAGES, QUEUED_BYTES = 10_000, 128 << 20  # For each client that is slower than what it is sent.
IN_FLIGHT = 64


@dataclass(frozen=True)
class Login:
    """How clients prove to the broker who they are."""

    devices: tuple[str, ...]  # With a user each; none: all share one.
    by_certificate: bool = False  # Instead of a password.


def write_mosquitto(out: Path, home: Path, topics: Topics, host: str, port: int, login: Login) -> None:
    """Write everything for mosquitto 2.

    Raises:
        ConfigError: a name cannot stand in a topic, or the certificates cannot be used.
    """
    _copy_certificates(out, home)
    lines = [
        f"listener {port}",
        f"cafile {out / CA}",
        f"certfile {out / SERVER}",
        f"keyfile {out / SERVER_KEY}",
    ]
    lines += ["tls_version tlsv1.2", f"max_connections {MAX_CONNECTIONS}"]
    if login.by_certificate:
        lines += ["require_certificate true", "use_identity_as_username true"]
    else:
        lines += [f"password_file {out / 'passwords'}"]
    if login.devices:
        lines += ["use_username_as_clientid true"]
    lines += ["allow_anonymous false", f"acl_file {out / 'acl'}"]
    lines += [f"max_packet_size {MAX_PACKET_BYTES}", f"message_size_limit {MAX_PACKET_BYTES}"]
    lines += [f"max_queued_messages {QUEUED_MESSAGES}", f"max_queued_bytes {QUEUED_BYTES}"]
    lines += [f"max_inflight_messages {IN_FLIGHT}", "persistence true", f"persistence_location {out}/"]
    lines += ["autosave_interval 60"]
    replace_file(out / "mosquitto.conf", ("\n".join(lines) + "\n").encode())
    replace_file(out / "acl", _access_rules(topics, "%u" if login.devices else "%c").encode())
    users = _logins(out, home, topics, host, port, login)
    if not login.by_certificate:
        hashed = "".join(f"{user}:{_mosquitto_hash(password)}\n" for user, password in users.items())
        replace_file(out / "passwords", hashed.encode(), 0o600)


def write_amqtt(out: Path, home: Path, topics: Topics, host: str, port: int, login: Login) -> None:
    """Write everything for `amqtt -c amqtt.yaml`. It has no limit for packets: `sparsefleet run`'s broker has.

    Raises:
        ConfigError: as above.
    """
    _copy_certificates(out, home)
    users = _logins(out, home, topics, host, port, login)
    listener = {"type": "tcp", "bind": f"0.0.0.0:{port}", "max_connections": MAX_CONNECTIONS, "ssl": True}
    listener |= {"certfile": str(out / SERVER), "keyfile": str(out / SERVER_KEY)}
    plugins = {f"{Gate.__module__}.{Gate.__qualname__}": {"fleet": topics.fleet, "users": users}}
    # JSON is YAML.
    whole = json.dumps({"listeners": {"default": listener}, "plugins": plugins}, indent=1)
    replace_file(out / "amqtt.yaml", whole.encode() + b"\n", 0o600)


def _access_rules(topics: Topics, device: str) -> str:
    lines = [f"user {COORDINATOR_USER}", f"topic readwrite {topics.root}#", ""]
    for rule in TABLE.values():
        access = "write" if rule.sender == CLIENT else "read"
        lines.append(f"pattern {access} {topics.root}{rule.levels.format(id=device, digest='+')}")
    return "\n".join(lines) + "\n"


def _logins(out: Path, home: Path, topics: Topics, host: str, port: int, login: Login) -> dict[str, str]:
    """Write what each side needs to log in; return the passwords by user."""
    if COORDINATOR_USER in login.devices:
        raise ConfigError(f"no device can be called {COORDINATOR_USER!r}")
    users: dict[str, str] = {}
    for name in (COORDINATOR_USER, *(login.devices or (DEVICE_USER,))):
        check_name("device", name)
        folder = out / ("coordinator" if name == COORDINATOR_USER else f"devices/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        authority = Authority.load_or_make(home)
        broker: dict[str, object] = {"url": f"mqtts://{host}:{port}", "fleet": topics.fleet, "username": name}
        broker |= {"ca": CA}
        replace_file(folder / CA, authority.pem)
        if login.by_certificate:
            authority.client(name).write(folder / "certificate.pem", folder / "key.pem")
            broker |= {"certificate": "certificate.pem", "key": "key.pem"}
        else:
            users[name] = secrets.token_urlsafe(18)
            broker |= {"password": users[name]}
        replace_file(folder / "broker.toml", dumps({"broker": broker}).encode(), 0o600)
    return users


def _copy_certificates(out: Path, home: Path) -> None:
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = server_files(home, [])
    replace_file(out / CA, Authority.load_or_make(home).pem)
    replace_file(out / SERVER, certificate.read_bytes())
    replace_file(out / SERVER_KEY, key.read_bytes(), 0o600)


def _mosquitto_hash(password: str) -> str:
    """Return a line's second half as `mosquitto_passwd` writes it: PBKDF2 with SHA-512, 101 iterations."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
