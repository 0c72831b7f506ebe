"""Brokers for the fault matrix, each in a process that can be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Mosquitto
from tests.faults.brokers import AmqttAlone


@pytest.fixture(params=["amqtt", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: pytest.FixtureRequest) -> Iterator[AmqttAlone | Mosquitto]:
    """Each of them in turn, running."""
    if request.param == "mosquitto":
        yield request.getfixturevalue("mosquitto")
        return
    alone = AmqttAlone()
    alone.start()
    yield alone
    alone.stop()


@pytest.fixture
def slow_link_broker(mosquitto: Mosquitto) -> Mosquitto:
    """One is enough where the link is what is slow."""
    return mosquitto
