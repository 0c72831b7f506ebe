"""The client's configuration: what is particular to this device. Everything else comes with the task.

client_id = "pi-07"
data = "client-000.npz"          # the local examples; they never leave the device
state = "state"                  # folder for what must survive a restart

[broker]
url = "mqtts://laptop.local:8883"
ca = "ca.pem"                    # of the coordinator: ~/.config/sparsefleet/ca/ca.pem there
password = "..."                 # or the environment variable SPARSEFLEET_PASSWORD

[identity]
pairing_code = "..."             # once; from `sparsefleet fleet code` on the coordinator
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_client.energy.settings import MeterSettings
from edge_client.limits import LimitsConfig
from edge_client.ort import PORTABLE
from edge_client.runtime import FULL
from protocol.config import load
from protocol.messages import Name

CODE_VARIABLE = "SPARSEFLEET_PAIRING_CODE"
PASSWORD_VARIABLE = "SPARSEFLEET_PASSWORD"  # noqa: S105  The variable's name is no secret.


class BrokerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Where the broker is."""

    url: str = "mqtt://127.0.0.1:1883"
    fleet: Name = "fleet"
    username: str = "device"
    password: str = ""
    ca: str = ""  # For mqtts://: the coordinator's ca/ca.pem. Empty: the authorities that the system trusts.
    certificate: str = ""  # Of this device, where the broker asks for one,
    key: str = ""  # and its private key.
    plaintext: bool = False  # Allow mqtt:// to another machine: the network itself is encrypted.
    connect_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class IdentityConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How this device came to know its coordinator (docs/security.md)."""

    # From `sparsefleet fleet code`; used once. Better: environment variable SPARSEFLEET_PAIRING_CODE.
    pairing_code: str = ""
    # Whether to obey a coordinator whose key is not known; "auto": over a broker on the loopback interface.
    unsigned: Literal["auto", "allow", "refuse"] = "auto"


class ClientConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One client."""

    client_id: Name
    data: str
    state: str = "state"
    runtime: Literal["portable", "module"] = PORTABLE  # type: ignore[assignment]
    # How activations wait for the backward pass; all but "full" trade time for memory (docs/memory.md).
    saved_activations: Literal["full", "compressed", "half"] = FULL  # type: ignore[assignment]
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0  # 0: as the device profile recommends.
    spin: bool = False  # Threads wait for each other awake without a bound: docs/engine.md.
    # Tasks that need more are refused. 0: as the device profile says; what is available is never exceeded.
    memory_budget_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    energy: str = "auto"  # Or a source by name: edge_client/energy/choose.py.
    profile: str = "auto"
    exit_after_run: bool = False  # Leave when the coordinator ends the run, instead of waiting for the next.
    broker: BrokerConfig = msgspec.field(default_factory=BrokerConfig)
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    meter: MeterSettings = msgspec.field(default_factory=MeterSettings)


def read(path: Path, overrides: tuple[str, ...] = ()) -> ClientConfig:
    """Read a client's configuration; relative paths become relative to the file's folder.

    Raises:
        ConfigError: unreadable, an unknown key, or a wrong value.
    """
    config = load(path, ClientConfig, overrides)
    config.data = str((path.parent / config.data).resolve())
    config.state = str((path.parent / config.state).resolve())
    for name in ("ca", "certificate", "key"):
        given = getattr(config.broker, name)
        setattr(config.broker, name, str((path.parent / given).resolve()) if given else "")
    return with_secrets(config)


def with_secrets(config: ClientConfig) -> ClientConfig:
    """Fill in what should not stand in files: the password and the pairing code, from the environment."""
    config.identity.pairing_code = os.environ.get(CODE_VARIABLE, config.identity.pairing_code)
    config.broker.password = os.environ.get(PASSWORD_VARIABLE, config.broker.password)
    return config
