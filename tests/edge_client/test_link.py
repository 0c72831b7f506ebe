"""Chunks that come to one client alone, and brokers whose access rules do not know of that."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edge_client.link import Link
from edge_client.trust import Trust
from protocol.blob_store import BlobStore
from protocol.errors import TransportError
from protocol.identity import Key
from protocol.messages import Want, decode
from protocol.topics import BLOB_DOWN, REPEAT, WANT, Topics
from protocol.transport import Loopback, LoopbackHub

TOPICS = Topics("fleet")
BODY = np.random.default_rng(0).bytes(300_000)  # Three chunks.


@pytest.mark.parametrize("may", [True, False])
def test_a_client_says_whether_it_hears_what_is_sent_to_it_alone(may, monkeypatch):
    subscribe = Loopback.subscribe

    def by_old_rules(transport: Loopback, topic_filter: str) -> None:
        if not may and "/repeat/" in topic_filter:
            raise TransportError(f"may not: {topic_filter}")
        subscribe(transport, topic_filter)

    monkeypatch.setattr(Loopback, "subscribe", by_old_rules)
    hub, store, found = LoopbackHub(), BlobStore(1 << 20), []
    coordinator = hub.connect("coordinator")
    coordinator.subscribe(TOPICS.of(WANT, "pi-1"))
    link = Link(hub.connect("pi-1"), TOPICS, "pi-1", Trust(Key.generate(), 1))
    ref = store.put(BODY)
    thread = threading.Thread(target=lambda: found.append(link.fetch(ref, len(BODY))))
    thread.start()
    packet = coordinator.receive(10)
    assert packet is not None
    want = decode(packet.payload)
    assert isinstance(want, Want)
    assert want.hears_repeats is may
    for chunk in want.chunks:
        payload = store.chunk(ref.digest, chunk)
        assert payload is not None
        coordinator.publish(TOPICS.of(REPEAT if may else BLOB_DOWN, "pi-1", ref.digest), payload)
    thread.join(10)
    assert found == [BODY]
