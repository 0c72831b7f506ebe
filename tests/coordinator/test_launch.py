"""Whom a run lets in, by its broker and its settings, and where it keeps what it knows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.broker import EmbeddedBroker
from coordinator.experiment import BrokerConfig, CohortConfig, Experiment, SecurityConfig
from coordinator.launch import _admission, _for_devices
from coordinator.registry import Device, Registry
from protocol.identity import KEY, Key
from protocol.messages import Training


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Where ~/.config would be."""
    monkeypatch.delenv("SPARSEFLEET_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "sparsefleet"


def admission(out, security: SecurityConfig | None = None, **broker: str):
    return _admission(
        Experiment(
            artifact="",
            data="",
            rounds=1,
            method={"name": "fedavg"},
            training=Training(1, 1, 0.1),
            cohort=CohortConfig(clients=1),
            broker=BrokerConfig(**broker),  # type: ignore[arg-type]
            security=security or SecurityConfig(),
        ),
        out,
    )


@pytest.mark.parametrize(
    ("broker", "unsigned", "is_open"),
    [
        ({}, "auto", True),
        ({"url": "mqtt://localhost"}, "auto", True),
        ({"url": "mqtts://127.0.0.1:8883"}, "auto", True),
        ({"bind": "0.0.0.0"}, "auto", False),
        ({"url": "mqtts://laptop.local"}, "auto", False),
        ({"url": "mqtts://laptop.local"}, "allow", True),
        ({}, "refuse", False),
    ],
)
def test_strangers_are_let_in_only_on_this_machine_or_where_it_is_said(
    broker, unsigned, is_open, config, tmp_path
):
    made = admission(tmp_path / "run", SecurityConfig(unsigned), **broker)
    assert (made.guests is not None) == is_open
    # A trial on this machine leaves nothing outside its run folder.
    assert (tmp_path / "run" / "identity" / KEY).exists() == is_open
    assert config.exists() != is_open
    made.close()


def test_who_was_paired_here_is_known_also_on_this_machine(config, tmp_path):
    Key.load_or_make(config)
    listed = Registry(config / "fleet.db")
    listed.put(Device("pi-1", b"\1" * 32))
    made = admission(tmp_path / "run")
    assert made.listed.device("pi-1") is not None
    assert made.guests is not None
    assert made.guests.devices() == []
    assert not (tmp_path / "run" / "identity" / KEY).exists()
    made.close()


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_a_folder_that_was_chosen_is_used(how, config, monkeypatch, tmp_path):
    if how == "environment":
        monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "chosen"))
    security = SecurityConfig(home=str(tmp_path / "chosen") if how == "setting" else "")
    admission(tmp_path / "run", security).close()
    assert (tmp_path / "chosen" / KEY).exists()
    assert not config.exists()


@pytest.mark.parametrize(
    ("broker", "port", "shown"),
    [
        ({}, 1883, "mqtt://127.0.0.1:1883"),
        ({"bind": "0.0.0.0"}, 8883, "mqtts://laptop.local:8883"),
        ({"bind": "0.0.0.0", "plaintext": True}, 1883, "mqtt://laptop.local:1883"),
        ({"bind": "0.0.0.0", "port": 1234}, 1234, "mqtts://laptop.local:1234"),
        ({"bind": "192.0.2.7"}, 8883, "mqtts://192.0.2.7:8883"),
    ],
)
def test_devices_are_told_where_they_find_the_embedded_broker(broker, port, shown, monkeypatch):
    monkeypatch.setattr("protocol.broker_url.socket.gethostname", lambda: "laptop.example.org")
    made = BrokerConfig(**broker)
    assert made.listens_on == port
    certificate = (Path("a"), Path("b")) if made.has_tls else None
    embedded = EmbeddedBroker({"device": "x"}, "fleet", made.bind, made.listens_on, certificate)
    assert _for_devices(embedded.url, made) == shown
    given = BrokerConfig(url="mqtts://elsewhere:1", bind="0.0.0.0")
    assert _for_devices("mqtts://elsewhere:1", given) == "mqtts://elsewhere:1"
