from __future__ import annotations

import random

import msgspec
import pytest

from protocol.errors import NotAdmitted, ProtocolError, Replayed
from protocol.identity import Key
from protocol.messages import Leave, Refusal, Signed, decode, encode
from protocol.signed import WINDOW, Sealer, Window, opened

TOPIC = "sf/1/lab/dev/pi-1/update"
REFUSAL = Refusal("pi-1", "run", 3, "no")
KEY = Key.generate()


def sealed(topic: str = TOPIC, message=REFUSAL, audience: int = 7) -> Signed:
    signed = decode(Sealer(KEY, 5).seal(topic, message, audience))
    assert isinstance(signed, Signed)
    return signed


def test_what_was_sealed_opens_with_its_key_on_its_topic():
    signed = sealed()
    assert opened(signed, TOPIC, KEY.public) == REFUSAL
    assert (signed.session, signed.counter, signed.audience) == (5, 1, 7)


@pytest.mark.parametrize(
    ("changes", "topic"),
    [
        ({}, "sf/1/lab/dev/pi-2/update"),
        ({}, "sf/1/lab/dev/pi-1/state"),
        ({}, "sf/1/labx/dev/pi-1/update"),
        ({"session": 6}, TOPIC),
        ({"counter": 2}, TOPIC),
        ({"audience": 8}, TOPIC),
        ({"boot": b"12345678"}, TOPIC),
        ({"boot": b""}, TOPIC),
        ({"payload": encode(Leave("pi-1", 5))}, TOPIC),
        ({"signature": bytes(64)}, TOPIC),
    ],
)
def test_nothing_of_it_may_be_changed(changes, topic):
    with pytest.raises(NotAdmitted):
        opened(msgspec.structs.replace(sealed(), **changes), topic, KEY.public)


def test_another_key_does_not_open_it():
    with pytest.raises(NotAdmitted):
        opened(sealed(), TOPIC, Key.generate().public)


def test_no_flipped_bit_gets_through():
    whole = bytearray(encode(sealed()))
    for bit in random.Random(0).choices(range(8 * len(whole)), k=1000):
        whole[bit // 8] ^= 1 << bit % 8
        try:
            message = decode(bytes(whole))
            if isinstance(message, Signed):
                opened(message, TOPIC, KEY.public)
                pytest.fail(f"bit {bit} was flipped, and it was accepted")
        except ProtocolError:
            pass
        whole[bit // 8] ^= 1 << bit % 8


def test_counters_are_taken_once_and_may_overtake_each_other_a_little():
    window = Window()
    for counter in (1, 3, 2, 40, 39, 9):
        window = window.after(counter)
    for counter in (1, 3, 2, 40, 39, 9, 8, 0):  # 8 is 32 behind: too old to tell.
        with pytest.raises(Replayed):
            window.after(counter)
    assert window.after(10).after(38).top == 40


def test_a_window_agrees_with_a_set_of_all_counters():
    rng, window, seen = random.Random(1), Window(), set()
    for _ in range(5000):
        counter = max(1, (max(seen) if seen else 0) + rng.randint(-2 * WINDOW, WINDOW + 8))
        is_new = counter not in seen and counter > (max(seen) if seen else 0) - WINDOW
        try:
            window = window.after(counter)
            assert is_new
            seen.add(counter)
        except Replayed:
            assert not is_new
    assert len(seen) > 1000
