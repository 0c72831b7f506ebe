"""What clients ask for: once for all of them, and again for whoever has missed it."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.downlink import FEW, GATHER_S, GRACE_S, RETURN_S, TRIES, Downlink
from protocol.blob_store import RESEND_S
from protocol.blobs import Assembly, ref_of
from protocol.messages import Want
from protocol.topics import BLOB_DOWN, Topics
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


class Cohort:
    """Clients that hear the body's topic and one of their own, where packets take time."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Loopback, "is_remote", True)
        self.hub = LoopbackHub()
        self.down = Downlink(self.hub.connect("coordinator"), TOPICS)
        self.down.offer(BODY)
        self.clients = {f"client-{n}": self.hub.connect(f"client-{n}") for n in range(number)}
        for name, client in self.clients.items():
            client.subscribe(TOPIC)
            client.subscribe(TOPICS.repeats(name))

    def heard(self, now_s: float, wants: dict[int, list[int]], hears_repeats: bool = True) -> list[int]:
        """How many chunks came to each client after these have asked."""
        for n, chunks in wants.items():
            self.down.want(f"client-{n}", Want(REF.digest, chunks, hears_repeats), now_s)
        self.down.tick(now_s + 2 * GATHER_S)
        found = []
        for client in self.clients.values():
            found.append(0)
            while client.receive(0) is not None:
                found[-1] += 1
        return found


def test_what_a_few_have_missed_goes_to_them_alone(monkeypatch):
    cohort = Cohort(5, monkeypatch)
    assert cohort.heard(0, {n: [0] for n in range(5)}) == [1] * 5
    assert cohort.heard(2, {0: [0], 1: [0]}) == [0] * 5  # Taken for a crossing.
    assert cohort.heard(4, {0: [0], 1: [0]}) == [1, 1, 0, 0, 0]
    assert cohort.heard(6, {0: [1]}) == [1] * 5  # Nobody has it yet.


def test_what_was_published_just_now_is_on_its_way_however_often_it_is_asked_for(monkeypatch):
    cohort = Cohort(2, monkeypatch)
    assert cohort.heard(0, {0: [0], 1: [0]}) == [1, 1]
    for now_s in (0.2, 0.5, GRACE_S - 0.2):
        assert cohort.heard(now_s, {0: [0]}) == [0, 0]
    assert cohort.heard(GRACE_S + 1, {}) == [0, 0]  # Nor later: nobody waits for it.
    assert cohort.heard(GRACE_S + 1, {0: [0]}) == [1, 0]


def test_what_was_sent_to_one_alone_just_now_is_on_its_way_too(monkeypatch):
    cohort = Cohort(2, monkeypatch)
    cohort.heard(0, {0: [0], 1: [0]})
    cohort.down.returned("client-0")
    assert cohort.heard(3, {0: [0]}) == [1, 0]
    for now_s in (3.2, 3.5, 3 + GRACE_S):
        assert cohort.heard(now_s, {0: [0]}) == [0, 0]
    assert cohort.heard(4 + GRACE_S, {}) == [0, 0]
    assert cohort.heard(4 + GRACE_S, {0: [0]}) == [1, 0]


def test_what_more_than_a_few_have_missed_is_published_again(monkeypatch):
    number = 3 * FEW
    cohort = Cohort(number, monkeypatch)
    cohort.heard(0, {n: [0, 1] for n in range(number)})
    for n in range(number):
        cohort.down.returned(f"client-{n}")
    assert cohort.heard(2, {n: [0] for n in range(FEW)}) == [1] * FEW + [0] * 2 * FEW
    assert cohort.heard(4, {n: [1] for n in range(FEW + 1)}) == [1] * number


def test_who_asks_again_although_it_was_sent_to_it_alone_gets_it_with_the_others(monkeypatch):
    """The access rules of its broker may be older than topics of its own."""
    cohort = Cohort(2, monkeypatch)
    assert cohort.heard(0, {0: [0], 1: [0]}) == [1, 1]
    cohort.down.returned("client-0")
    assert cohort.heard(3, {0: [0]}) == [1, 0]
    assert cohort.heard(6, {0: [0]}) == [0, 0]  # Taken for a crossing.
    for n in range(TRIES - 1):
        assert cohort.heard(9 + 3 * n, {0: [0]}) == [1, 0]
    assert cohort.heard(9 + 3 * TRIES, {0: [0]}) == [1, 1]


def test_an_old_client_gets_repetitions_with_the_others(monkeypatch):
    cohort = Cohort(2, monkeypatch)
    cohort.heard(0, {0: [0], 1: [0]})
    cohort.down.returned("client-0")
    assert cohort.heard(2, {0: [0]}, hears_repeats=False) == [1, 1]


def test_asking_for_what_does_not_exist_takes_no_memory():
    down = Downlink(LoopbackHub().connect("coordinator"), TOPICS)
    down.offer(BODY)
    for n in range(10):
        down.want("a", Want(REF.digest, list(range(3 + 1000 * n, 1003 + 1000 * n))), float(n))
        down.tick(n + 0.5)
    offer = down._offers[REF.digest]
    assert not offer.waiting
    assert not offer.waiting_since_s
