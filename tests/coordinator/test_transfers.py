from __future__ import annotations

import numpy as np
import pytest

from coordinator import transfers
from coordinator.transfers import GATHER_S, RETURN_S, Downlink, Uplink
from protocol.blobs import RESEND_S, Assembly, BlobStore, pack_chunk, ref_of
from protocol.errors import LimitExceeded
from protocol.messages import Want, decode
from protocol.topics import BLOB_DOWN, FETCH, Topics
from protocol.transport import Loopback, LoopbackHub

TOPICS = Topics("fleet")
BODY = np.random.default_rng(0).bytes(300_000)  # Three chunks.
REF = ref_of(BODY)
TOPIC = TOPICS.of(BLOB_DOWN, digest=REF.digest)


def test_one_publication_serves_a_cohort_that_asks_at_once():
    hub = LoopbackHub()
    down = Downlink(hub.connect("coordinator"), TOPICS)
    assert down.offer(BODY) == REF
    receivers = [(hub.connect(f"client-{n}"), Assembly(REF, 1 << 20)) for n in range(5)]
    for n, (transport, assembly) in enumerate(receivers):
        transport.subscribe(TOPIC)
        wanted = assembly.wanted(0.0)
        assert wanted is not None
        down.want(f"client-{n}", Want(REF.digest, wanted), now_s=0.005 * n)
        down.tick(0.005 * n)
    down.tick(GATHER_S + 0.001)
    down.tick(GATHER_S + 0.3)
    for transport, assembly in receivers:
        num_packets = 0
        while (packet := transport.receive(0)) is not None:
            num_packets += 1
            assembly.add(packet.payload)
        assert num_packets == 3
        assert bytes(assembly.bytes()) == BODY


@pytest.mark.parametrize("is_remote", [True, False])
def test_whoever_asks_after_the_publication_gets_its_repetition(is_remote, monkeypatch):
    """After a second, since it may still be on its way; at once where packets take no time."""
    monkeypatch.setattr(Loopback, "is_remote", is_remote)
    hub = LoopbackHub()
    down = Downlink(hub.connect("coordinator"), TOPICS)
    down.offer(BODY)
    down.want("a", Want(REF.digest, [0]), 0.0)
    down.tick(0.1)
    late = hub.connect("late")
    late.subscribe(TOPIC)
    down.want("late", Want(REF.digest, [0]), 0.2)
    down.tick(0.3)
    assert (late.receive(0) is None) == is_remote
    down.tick(0.1 + RESEND_S + 0.01)
    assert (late.receive(0) is None) != is_remote


def test_what_is_on_its_way_to_a_listener_is_not_published_again(monkeypatch):
    """Its Want crossed the chunk, which another one had asked for. Were the chunk lost, it would ask again."""
    monkeypatch.setattr(Loopback, "is_remote", True)
    hub = LoopbackHub()
    down, client = Downlink(hub.connect("coordinator"), TOPICS), hub.connect("b")
    down.offer(BODY)
    client.subscribe(TOPIC)
    down.want("b", Want(REF.digest, [0]), 0.0)
    down.want("a", Want(REF.digest, [0, 1]), 0.0)
    down.tick(0.1)
    down.want("b", Want(REF.digest, [1]), 0.2)
    down.tick(0.1 + RESEND_S + 0.1)
    assert [client.receive(0) is not None for _ in range(3)] == [True, True, False]
    down.want("b", Want(REF.digest, [1]), 3.0)
    down.tick(3.1)
    assert client.receive(0) is not None
    down.returned("b")  # What it missed meanwhile is not taken for a crossing.
    down.want("b", Want(REF.digest, [0]), 4.0)
    down.tick(4.2)
    assert client.receive(0) is not None


def test_after_a_reconnect_nothing_is_published_until_the_others_are_back(monkeypatch):
    monkeypatch.setattr(Loopback, "is_remote", True)
    hub = LoopbackHub()
    down, client = Downlink(hub.connect("coordinator"), TOPICS), hub.connect("a")
    down.offer(BODY)
    client.subscribe(TOPIC)
    down.want("a", Want(REF.digest, [0]), 0.0)
    hub.restart()
    down.tick(10.0)
    down.want("a", Want(REF.digest, [1]), 10.1)
    down.tick(10.0 + RETURN_S - 0.1)
    assert client.receive(0) is None
    down.tick(10.0 + RETURN_S + 0.1)
    packet = client.receive(0)
    assert packet is not None
    assert packet.payload[0] == 1
    assert client.receive(0) is None


def test_what_was_withdrawn_is_not_published():
    hub = LoopbackHub()
    down, client = Downlink(hub.connect("coordinator"), TOPICS), hub.connect("client")
    client.subscribe(TOPIC)
    down.offer(BODY)
    down.want("a", Want(REF.digest, [0, 1, 99]), 0.0)
    down.withdraw([REF.digest])
    down.want("a", Want(REF.digest, [0]), 0.0)
    down.tick(1.0)
    assert client.receive(0) is None


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
    monkeypatch.setattr(transfers, "OPEN_BYTES", 2 * len(BODY))
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
