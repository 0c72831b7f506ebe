"""Two cards with one key, at a real broker: both are out before the second round has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from coordinator import service
from coordinator.broker import EmbeddedBroker
from coordinator.registry import Registry
from coordinator.report import read_csv
from edge_client.trust import Trust
from protocol import mqtt
from protocol.errors import TransportError
from protocol.messages import Task
from protocol.transport import Transport, Will
from tests.conftest import USERS
from tests.test_replay import TOPICS, Client, Wire, nothing


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(USERS, TOPICS.fleet) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1, 5], ids=["as often", "once more", "more often"])
def test_copies_of_a_card_are_quarantined_within_two_rounds(more, fault, broker, monkeypatch, tmp_path):
    """The copy was made after the first start, and was started as often as its original, or more often."""
    row = fault(18)
    monkeypatch.setattr(service, "FAREWELL_S", 0.0)
    opened: list[mqtt.MqttTransport] = []

    def connect(name: str, will: Will | None) -> Transport:
        user = "coordinator" if name == "coordinator" else "device"
        opened.append(mqtt.connect(broker.url, name, user, USERS[user], will))
        return opened[-1]

    wire, copies = Wire(tmp_path), []

    def started(trust: Trust) -> Client:
        """As a board's service does it, again and again: of two with one name the broker may drop either."""
        until_s = time.monotonic() + 30
        while True:
            try:
                return Client(connect, "a", trust, nothing)
            except TransportError:
                if time.monotonic() > until_s:
                    raise

    def copy(task: Task) -> None:
        """In the first round the copy of `a` is switched on; the second lasts seconds, as on boards."""
        listed = Registry(tmp_path / "fleet.db")
        until_s = time.monotonic() + 5
        while task.round_number == 2 and time.monotonic() < until_s:
            if listed.device("a").status == "quarantined":  # type: ignore[union-attr]
                return
            time.sleep(0.02)
        if not copies:
            copies.append(None)
            trust = Trust(wire.keys["a"], 1 + more, wire.keys["coordinator"].public)
            copies.append(started(trust))

    coordinator, _ = wire.federation("run", 1, copy, rounds=4, connect=connect)
    try:
        coordinator.run()
    finally:
        for transport in opened:
            transport.close()
    row.trials = 1
    device = wire.registry.device("a")
    assert device is not None
    assert device.status == "quarantined"
    assert "card was copied" in device.reason
    (found,) = [event for event in wire.events("run") if event["event"] == "quarantined"]
    assert found["client"] == "a"
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["updates"] for row in rows[2:]] == ["2", "2"]
