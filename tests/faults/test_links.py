"""Fault rows 6, 25 and 26: what networks do between clients and broker."""

from __future__ import annotations

import random

import numpy as np
import pytest

from protocol import mqtt
from tests.faults.peers import Fleet, undisturbed
from tests.faults.record import full
from tools.chaos.proxy import FaultProxy

# Row 6


@pytest.mark.slow
def test_each_message_up_to_five_times_ends_in_the_same_bits(fault, broker, tmp_path):
    row = fault(6)
    facts = {"size": 100_000, "rounds": full(20, 3), "peers": 4}
    with FaultProxy("127.0.0.1", broker.port, seed=6) as proxy:
        proxy.set("duplicate", 0.6)
        with Fleet(tmp_path / "run", url=proxy.url, **facts) as fleet:
            weights = fleet.run().weights
            row.trials = proxy.counts["duplicate"]
            row.lost, row.double = fleet.tally()[1:]
            assert fleet.tally().accepted == facts["rounds"] * 4
    assert weights.tobytes() == undisturbed(tmp_path / "undisturbed", **facts).tobytes()
    assert (row.lost, row.double) == (0, 0)
    assert row.trials > 30


# Row 25


@pytest.mark.slow
@pytest.mark.mosquitto
def test_an_update_passes_a_slow_lossy_link(fault, mosquitto, tmp_path):
    """64 kbit/s, 600 ms there and 600 ms back, 5 % of segments lost: repeated by TCP after a pause."""
    row = fault(25)
    num_bytes = full(1_000_000, 150_000)
    facts = {"size": num_bytes // 4, "peers": 1}
    with FaultProxy("127.0.0.1", mosquitto.port, seed=25) as proxy:
        for name, value in (("delay", 0.6), ("rate", 64_000), ("loss", 0.05)):
            proxy.set(name, value)
        with Fleet(tmp_path / "run", url=mosquitto.url, peer_url=proxy.url, deadline_s=900, **facts) as fleet:
            weights = fleet.run().weights
            (peer,) = fleet.peers
            row.lost, row.double = fleet.tally()[1:]
            assert peer.transport.sent_bytes <= 1.3 * num_bytes  # What is on its way is not asked for again.
            assert (peer.abandoned, peer.transport.connections) == (0, 1)
    row.trials = 1
    row.is_partial = num_bytes < 1_000_000
    assert fleet.tally() == (1, 0, 0)
    assert weights.tobytes() == undisturbed(tmp_path / "undisturbed", **facts).tobytes()


def test_a_thousand_clients_do_not_come_back_at_once(fault, monkeypatch):
    """The waits that the transport chooses after a broker's end: by chance, and ever longer."""
    row = fault(25)
    returns: list[list[float]] = []
    for number in range(1000):
        monkeypatch.setattr(mqtt.random, "uniform", random.Random(number).uniform)
        transport = mqtt.MqttTransport("mqtt://nowhere", f"pi-{number}", "", "", None, 60, None)
        transport._connections = 1
        waits: list[float] = []
        monkeypatch.setattr(transport._client, "reconnect_delay_set", lambda least, most: waits.append(least))  # noqa: B023
        for _ in range(20):
            transport._on_connect_fail(None, None)
        assert min(waits) >= mqtt.RECONNECT_S_MIN
        assert sum(waits) >= len(waits)  # At most one attempt a second.
        returns.append(list(np.cumsum(waits)))
        row.trials += 1
    # A broker that is away for a minute: when does each come to it first?
    back = [min(at for at in one if at >= 60) for one in returns]
    assert max(back) - min(back) >= 10
    busiest = np.histogram(back, np.arange(60, 90))[0].max()
    assert busiest <= 150  # Of a thousand in any one second.


# Row 26


@pytest.mark.slow
@pytest.mark.mosquitto
def test_a_download_over_32_kbit_per_second_keeps_its_connection(fault, mosquitto, tmp_path):
    row = fault(26)
    num_bytes = full(5_000_000, 300_000)
    with FaultProxy("127.0.0.1", mosquitto.port, seed=26) as proxy:
        proxy.set("rate", 32_000, "down")
        facts = {"size": num_bytes // 4, "peers": 1, "fetches": True}
        with Fleet(
            tmp_path / "run", url=mosquitto.url, peer_url=proxy.url, deadline_s=3600, **facts
        ) as fleet:
            fleet.run()
            (peer,) = fleet.peers
            row.trials = 1
            row.is_partial = num_bytes < 5_000_000
            row.lost, row.double = fleet.tally()[1:]
            assert (peer.transport.connections, peer.abandoned) == (1, 0)
            assert peer.transport.received_bytes <= 1.1 * num_bytes + 4 * 131_080  # Before the rate is known.
    assert fleet.tally() == (1, 0, 0)
