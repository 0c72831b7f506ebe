"""client.toml of a device with the service's paths: what `device install` and `card` write."""

from __future__ import annotations

from protocol.toml import dumps

CA = "/etc/sparsefleet/broker-ca.pem"


def client_file(
    client_id: str,
    url: str,
    fleet: str,
    username: str = "device",
    password: str = "",
    has_ca: bool = False,
    pairing_code: str = "",
    plaintext: bool = False,
) -> bytes:
    """Return its text; what is empty is left out, so that the client's defaults hold."""
    broker = {
        "url": url,
        "fleet": fleet,
        "username": username,
        "password": password,
        "ca": CA if has_ca else "",
        "plaintext": plaintext,
    }
    table: dict[str, object] = {
        "client_id": client_id,
        "data": "/var/lib/sparsefleet/data.npz",
        "state": "/var/lib/sparsefleet/state",
        "broker": {name: value for name, value in broker.items() if value},
    }
    if pairing_code:
        table["identity"] = {"pairing_code": pairing_code}
    return dumps(table).encode()
