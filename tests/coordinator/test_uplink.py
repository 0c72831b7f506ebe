"""What clients send: chunks of their updates."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator import uplink as module
from coordinator.uplink import Uplink
from protocol.blob_store import BlobStore
from protocol.blobs import pack_chunk, ref_of
from protocol.errors import LimitExceeded
from protocol.messages import Want, decode
from protocol.topics import FETCH, Topics
from protocol.transport import LoopbackHub

TOPICS = Topics("fleet")
BODY = np.random.default_rng(0).bytes(300_000)  # Three chunks.
REF = ref_of(BODY)


def uplink() -> tuple[Uplink, LoopbackHub]:
    hub = LoopbackHub()
    return Uplink(hub.connect("coordinator"), TOPICS), hub


def test_a_body_is_asked_for_and_put_together():
    up, hub = uplink()
    client = hub.connect("a")
    client.subscribe(TOPICS.of(FETCH, "a"))
    up.begin("a", REF, 1 << 20)
    up.tick(0.0)
    packet = client.receive(0)
    assert packet is not None
    want = decode(packet.payload)
    assert isinstance(want, Want)
    assert want.chunks == [0, 1, 2]
    store = BlobStore(1 << 20)
    store.put(BODY)
    found = [up.chunk("a", REF.digest, store.chunk(REF.digest, i) or b"") for i in want.chunks]
    assert found == [None, None, BODY]
    assert (
        up.chunk("a", REF.digest, store.chunk(REF.digest, 0) or b"") is None
    )  # Nothing is awaited any more.


def test_a_body_beyond_the_limit_is_refused_when_it_is_announced():
    up, _ = uplink()
    with pytest.raises(LimitExceeded):
        up.begin("a", REF, 1000)


def test_other_bytes_than_announced_are_fetched_again():
    up, _ = uplink()
    ref = ref_of(b"12345")
    up.begin("a", ref, 1 << 20)
    # Somebody else may have put it there: it is fetched again, and then it is right.
    for _ in range(20):
        assert up.chunk("a", ref.digest, pack_chunk(0, b"54321")) is None
    assert up.chunk("a", ref.digest, pack_chunk(0, b"12345")) == b"12345"
    assert up.chunk("a", ref.digest, pack_chunk(0, b"12345")) is None


def test_a_large_cohort_is_asked_a_few_at_a_time_in_the_order_of_arrival(monkeypatch):
    monkeypatch.setattr(module, "OPEN_BYTES", 2 * len(BODY))
    up, hub = uplink()
    asked = hub.connect("spy")
    names = [f"client-{n}" for n in range(7)]
    for name in names:
        asked.subscribe(TOPICS.of(FETCH, name))
    for name in names:
        up.begin(name, REF, 1 << 20)

    def heard() -> list[str]:
        up.tick(0.0)
        found = []
        while (packet := asked.receive(0)) is not None:
            address = TOPICS.parse(packet.topic)
            assert address is not None
            found.append(address.client_id)
        return found

    assert heard() == names[:4]  # Four, although two would be enough for the bytes.
    assert heard() == []
    store = BlobStore(1 << 20)
    store.put(BODY)
    for index in range(3):
        body = up.chunk("client-2", REF.digest, store.chunk(REF.digest, index) or b"")
    assert body == BODY
    assert heard() == ["client-4"]
    up.forget("client-0")
    assert heard() == ["client-5"]
