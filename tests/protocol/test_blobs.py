"""Chunks get through whatever the network does, and are published about once for a whole cohort."""

import heapq
import os
import random
from collections import Counter, deque

import pytest

from protocol import blobs
from protocol.blob_store import BlobStore, Publisher
from protocol.blobs import CHUNK_BYTES, Assembly, num_chunks, pack_chunk, ref_of
from protocol.errors import DigestMismatch, LimitExceeded
from protocol.messages import BlobRef

MAX_BYTES = 64 << 20


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def chunks_of(data: bytes) -> list[bytes]:
    starts = range(0, len(data), CHUNK_BYTES)
    return [pack_chunk(i, data[start : start + CHUNK_BYTES]) for i, start in enumerate(starts)]


class Network:
    """Events in simulated time: Wants to the sender, chunks on one topic that all receivers hear."""

    def __init__(self, data: bytes, num_receivers: int = 1, seed: int = 7) -> None:
        self.random = random.Random(seed)
        self.store = BlobStore(MAX_BYTES)
        self.ref = self.store.put(data)
        self.publisher = Publisher(self.store)
        self.receivers = [Assembly(self.ref, MAX_BYTES) for _ in range(num_receivers)]
        self.events: list[tuple[float, int, object, object]] = []
        self.num_events = 0
        self.now_s = 0.0
        self.published: Counter[int] = Counter()
        self.num_wants = 0

    def at(self, time_s: float, action, argument) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (time_s, self.num_events, action, argument))

    def run(self, carry, until_s: float = 600) -> None:
        """`carry(network, payload)` yields a (delay_s, payload) for each copy that a receiver gets."""
        self.carry = carry
        for i in range(len(self.receivers)):
            self.at(0.05 * i, self.poll, i)
        while self.events and self.now_s < until_s:
            self.now_s, _, action, argument = heapq.heappop(self.events)
            action(argument)

    def poll(self, i: int) -> None:
        self.ask(i)
        if not self.receivers[i].is_complete:
            self.at(self.now_s + 0.2, self.poll, i)

    def ask(self, i: int) -> None:
        chunks = self.receivers[i].wanted(self.now_s)
        if chunks is not None:
            self.num_wants += 1
            assert len(self.receivers[i]._asked) <= blobs.WINDOW
            self.at(self.now_s + 0.01, self.publish, chunks)

    def publish(self, chunks: list[int]) -> None:
        for chunk in self.publisher.due(self.ref.digest, chunks, self.now_s):
            self.published[chunk] += 1
            payload = self.store.chunk(self.ref.digest, chunk)
            for i in range(len(self.receivers)):
                for delay_s, copy in self.carry(self, payload):
                    self.at(self.now_s + delay_s, self.arrive, (i, copy))

    def arrive(self, event: tuple[int, bytes]) -> None:
        i, payload = event
        self.receivers[i].add(payload)
        self.ask(i)


def perfect(network: Network, payload: bytes):
    yield 0.02, payload


def terrible(network: Network, payload: bytes):
    """Lose a tenth, double a tenth, damage a twentieth, and reorder all."""
    for _ in range(2 if network.random.random() < 0.1 else 1):
        if network.random.random() < 0.1:
            continue
        if network.random.random() < 0.05:
            damaged = bytearray(payload)
            damaged[network.random.randrange(len(payload))] ^= 1 << network.random.randrange(8)
            payload = bytes(damaged)
        yield network.random.uniform(0.01, 0.5), payload


# The whole exchange


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES])
def test_a_body_of_any_size_arrives(size):
    data = some_bytes(size)
    network = Network(data)
    network.run(perfect)
    assert network.receivers[0].bytes() == data
    assert network.published == Counter(range(num_chunks(size)))


@pytest.mark.parametrize("seed", range(5))
def test_a_body_survives_loss_duplication_reordering_and_damage(seed):
    data = some_bytes(60 * CHUNK_BYTES + 5, seed)
    network = Network(data, seed=seed)
    network.run(terrible)
    receiver = network.receivers[0]
    assert receiver.bytes() == data
    assert receiver.num_rejected > 0
    assert receiver.num_duplicates > 0
    # Reordering looks like loss, so that some are sent in vain; a storm would be many times as much.
    assert network.published.total() <= 2 * 61


def test_a_cohort_costs_about_one_publication_of_each_chunk():
    data = some_bytes(40 * CHUNK_BYTES)
    network = Network(data, num_receivers=8)
    network.run(perfect)
    assert all(receiver.bytes() == data for receiver in network.receivers)
    assert network.published.total() <= 1.1 * 40


def test_a_receiver_that_missed_a_chunk_gets_it_without_the_others_being_asked():
    data = some_bytes(40 * CHUNK_BYTES)
    network = Network(data, num_receivers=8)
    num_carried = 0

    def lose_one(network, payload):
        nonlocal num_carried
        num_carried += 1
        if num_carried != 83:  # Some chunk, for one of the eight.
            yield 0.02, payload

    network.run(lose_one)
    assert all(receiver.bytes() == data for receiver in network.receivers)
    assert network.published.total() <= 1.1 * 40


def test_a_broker_that_forgets_all_that_is_under_way_costs_one_window():
    network = Network(some_bytes(100 * CHUNK_BYTES))

    def outage(network, payload):
        if not 0.5 < network.now_s < 6:
            yield 0.2, payload

    network.run(outage)
    assert network.receivers[0].bytes() is not None
    assert network.now_s > 6
    assert network.published.total() <= 100 + 2 * blobs.WINDOW


def test_a_slow_link_is_not_asked_to_carry_chunks_twice():
    # 32 kbit/s: 4 KiB a second, so 16 s for each chunk, one after the other.
    network = Network(some_bytes(40 * CHUNK_BYTES))
    free_s = 0.0

    def slow(network, payload):
        nonlocal free_s
        free_s = max(free_s, network.now_s) + 16
        yield free_s - network.now_s, payload

    network.run(slow, until_s=4000)
    assert network.receivers[0].is_complete
    # Until the rate is known: after 2, 4 and 8 s of silence.
    assert network.published.total() <= 40 + 5


# The receiver


def asked_all(assembly: Assembly) -> Assembly:
    """Begin and say that everything in the first window was asked for at time 0."""
    assert assembly.wanted(0) == list(range(min(blobs.FIRST_WINDOW, num_chunks(assembly.ref.size))))
    assert assembly.wanted(0.1) is None
    return assembly


def test_silence_is_answered_with_one_chunk_at_doubling_times():
    assembly = asked_all(Assembly(BlobRef("0" * 64, 100 * CHUNK_BYTES), MAX_BYTES))
    asked = []
    for tenth in range(1, 1500):
        chunks = assembly.wanted(tenth / 10)
        if chunks is not None:
            asked.append((tenth / 10, chunks))
    # 2, then 2 + 4, 6 + 8, 14 + 16, and from there every 30 s.
    assert asked == [(t, [3]) for t in (2.0, 6.0, 14.0, 30.0, 60.0, 90.0, 120.0)]


def test_after_silence_the_first_chunk_tells_which_others_were_lost():
    data = some_bytes(10 * CHUNK_BYTES)
    assembly = asked_all(Assembly(ref_of(data), MAX_BYTES))
    assert assembly.wanted(2.0) == [3]
    assembly.add(chunks_of(data)[3])
    assert assembly.wanted(2.1) == [0, 1]  # Two, since a chunk in 2.1 s is all that is known of the link.


def test_chunks_that_are_only_slow_are_not_taken_for_lost():
    data = some_bytes(10 * CHUNK_BYTES)
    assembly = asked_all(Assembly(ref_of(data), MAX_BYTES))
    assert assembly.wanted(2.0) == [3]
    assembly.add(chunks_of(data)[0])
    chunks = assembly.wanted(2.1)
    assert chunks is None or not set(chunks) & {1, 2, 3}


def test_a_new_connection_is_asked_at_once():
    assembly = asked_all(Assembly(BlobRef("0" * 64, 4 * CHUNK_BYTES), MAX_BYTES))
    assembly.ask_again()
    assert assembly.wanted(0.2) == [0, 1, 2, 3]


def test_a_blob_above_the_limit_is_refused_before_anything_is_allocated():
    with pytest.raises(LimitExceeded, match=r"2147483648 bytes.*67108864"):
        Assembly(BlobRef("0" * 64, 2**31), MAX_BYTES)


def test_damaged_and_foreign_chunks_are_rejected_and_counted():
    data = some_bytes(2 * CHUNK_BYTES + 10)
    assembly = Assembly(ref_of(data), MAX_BYTES)
    first, _, last = chunks_of(data)
    wrong = [
        b"",
        first[:7],
        first[:-1],
        first + b"\0",
        first[:8] + bytes(CHUNK_BYTES),  # Wrong CRC.
        pack_chunk(2, data[:CHUNK_BYTES]),  # The last one is shorter.
        pack_chunk(0, data[:10]),
        pack_chunk(3, b"beyond"),
        pack_chunk(3, b""),
        pack_chunk(2**32 - 1, data[:CHUNK_BYTES]),
    ]
    assert [assembly.add(payload) for payload in wrong] == [False] * len(wrong)
    assert assembly.num_rejected == len(wrong)
    assert assembly.missing == [0, 1, 2]
    assert assembly.add(memoryview(last))
    assert assembly.add(last)
    assert (assembly.missing, assembly.num_duplicates) == ([0, 1], 1)


def test_the_wrong_bytes_behind_right_checksums_are_found_and_all_begins_again():
    data = some_bytes(CHUNK_BYTES + 1)
    assembly = Assembly(ref_of(data), MAX_BYTES)
    for chunk in chunks_of(some_bytes(CHUNK_BYTES + 1, seed=1)):
        assert assembly.add(chunk)
    with pytest.raises(DigestMismatch, match=ref_of(data).digest):
        assembly.bytes()
    assert assembly.wanted(0) == [0, 1]
    for chunk in chunks_of(data):
        assembly.add(chunk)
    assert assembly.bytes() == data


def test_an_incomplete_body_is_not_handed_out():
    with pytest.raises(ValueError, match="1 chunks are missing"):
        Assembly(ref_of(b"a"), MAX_BYTES).bytes()


# The store


@pytest.fixture(params=["memory", "directory"])
def directory(request, tmp_path):
    return tmp_path / "blobs" if request.param == "directory" else None


def test_a_store_returns_what_was_put(directory):
    store = BlobStore(MAX_BYTES, directory)
    data = some_bytes(CHUNK_BYTES + 3)
    ref = store.put(data)
    assert ref == ref_of(data)
    assert ref.digest in store
    assert store.get(ref.digest) == data
    assert [store.chunk(ref.digest, i) for i in range(-1, 3)] == [None, *chunks_of(data), None]
    assert store.get("0" * 64) is None
    assert store.chunk("0" * 64, 0) is None


def test_what_was_used_longest_ago_goes_first_and_pinned_bodies_stay(directory):
    store = BlobStore(30, directory)
    pinned, old, used = (store.put(bytes([i]) * 10) for i in range(3))
    store.pin(pinned.digest)
    store.get(old.digest)  # So that `used` is now the older one.
    new = store.put(b"x" * 10)
    assert [ref.digest in store for ref in (pinned, old, used, new)] == [True, True, False, True]
    assert store.num_bytes == 30


def test_a_body_that_cannot_fit_is_refused_and_nothing_is_thrown_away_for_it(directory):
    store = BlobStore(30, directory)
    pinned, other = store.put(b"a" * 10), store.put(b"b" * 10)
    store.pin(pinned.digest)
    with pytest.raises(LimitExceeded, match="10 of 30"):
        store.put(b"c" * 21)
    assert other.digest in store
    store.unpin(pinned.digest)
    store.put(b"c" * 21)
    assert store.num_bytes == 21


def test_a_store_finds_its_files_again_in_the_order_of_their_use(tmp_path):
    store = BlobStore(30, tmp_path)
    refs = [store.put(bytes([i]) * 10) for i in range(3)]
    for age, ref in enumerate(reversed(refs)):
        os.utime(tmp_path / ref.digest, (1000 + age, 1000 + age))
    (tmp_path / ("1" * 64 + ".tmp")).write_bytes(b"half")
    (tmp_path / "notes").write_bytes(b"not a blob")
    again = BlobStore(30, tmp_path)
    assert again.get(refs[0].digest) == bytes(10)
    again.put(b"x" * 10)
    assert [ref.digest in again for ref in refs] == [True, True, False]
    assert {path.name for path in tmp_path.iterdir()} >= {"notes"}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"spoiled", None])
def test_a_spoiled_or_lost_file_is_as_if_it_had_never_been_there(tmp_path, damage):
    store = BlobStore(MAX_BYTES, tmp_path)
    ref = store.put(b"precious")
    if damage is None:
        (tmp_path / ref.digest).unlink()
    else:
        (tmp_path / ref.digest).write_bytes(damage)
    assert store.get(ref.digest) is None
    assert ref.digest not in store
    store.put(b"precious")
    assert store.get(ref.digest) == b"precious"


# The publisher


def test_a_chunk_is_due_again_only_after_a_while():
    store = BlobStore(MAX_BYTES)
    digest = store.put(bytes(3 * CHUNK_BYTES)).digest
    publisher = Publisher(store)
    assert publisher.due(digest, [0, 1, 1, 7, -1], 100.0) == [0, 1]
    assert publisher.due(digest, [1, 2], 100.5) == [2]
    assert publisher.due(digest, [0, 1, 2], 101.0) == [0, 1]
    assert publisher.due(digest, [0, 1, 2], 101.5) == [2]
    assert publisher.due("0" * 64, [0], 101.5) == []


def test_what_was_published_long_ago_takes_no_memory():
    store = BlobStore(MAX_BYTES)
    digest = store.put(bytes(100 * CHUNK_BYTES)).digest
    publisher = Publisher(store)
    for second in range(100):
        publisher.due(digest, [second], second * 10)
    assert len(publisher._published_s) == 1


def test_transfers_of_many_bodies_in_any_order_do_not_mix():
    bodies = [some_bytes(2 * CHUNK_BYTES + i, seed=i) for i in range(10)]
    assemblies = [Assembly(ref_of(data), MAX_BYTES) for data in bodies]
    payloads = deque((i, chunk) for i, data in enumerate(bodies) for chunk in chunks_of(data))
    random.Random(1).shuffle(payloads)
    for i, chunk in payloads:
        assemblies[i].add(chunk)
    assert [assembly.bytes() for assembly in assemblies] == bodies
