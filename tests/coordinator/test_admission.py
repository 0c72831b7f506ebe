"""Who is let in, message by message, without a broker."""

from __future__ import annotations

import contextlib
import random

import msgspec
import pytest

from coordinator.admission import COPIED, Admission
from coordinator.registry import REVOKED, Device, Registry
from edge_client.trust import Trust
from protocol.errors import Dismissed, MalformedMessage, NotAdmitted, ProtocolError, Replayed
from protocol.identity import Key
from protocol.messages import Dismissal, End, Join, Leave, Refusal, Signed, Want, decode, encode
from protocol.signed import Sealer, covered
from protocol.topics import STATE, TASK, UPDATE, WANT, Topics
from protocol.transport import Packet

LAB = Topics("lab")
KEYS = {name: Key.generate() for name in ("a", "b", "coordinator")}


def join(client_id="a", session=1, connection=1, public=b"") -> Join:
    return Join(client_id, session, 1, "r", "k", "p", "e", public_key=public, connection=connection)


def refusal(client_id="a", round_number=1) -> Refusal:
    return Refusal(client_id, "run", round_number, "no")


def door(registry: Registry | None = None, guests: Registry | None = None) -> Admission:
    listed = registry or Registry()
    if not listed.devices():
        for name in ("a", "b"):
            listed.put(Device(name, KEYS[name].public))
    return Admission(KEYS["coordinator"], listed.next_session(), listed, guests)


def say(admission: Admission, payload: bytes, kind=UPDATE, client_id="a"):
    packet = Packet(LAB.of(kind, client_id), payload)
    return admission.open(LAB.parse(packet.topic), packet)


def seal(sealer: Sealer, message, kind=UPDATE, client_id="a") -> bytes:
    return sealer.seal(LAB.of(kind, client_id), message)


def test_a_listed_device_is_believed_under_its_key_once():
    admission, sealer = door(), Sealer(KEYS["a"], 1)
    payload = seal(sealer, refusal())
    assert say(admission, payload) == refusal()
    with pytest.raises(Replayed):
        say(admission, payload)


def test_nobody_is_believed_in_anothers_name():
    admission, a, b = door(), Sealer(KEYS["a"], 1), Sealer(KEYS["b"], 1)
    for payload in (
        encode(refusal()),  # Unsigned.
        seal(b, refusal()),  # Signed by another.
        seal(b, refusal("b")),
        seal(b, refusal("b"), client_id="b"),  # Said elsewhere.
        seal(a, refusal("b")),
        seal(a, refusal(), STATE),
        b"",
        b"\xc1",
        bytes(100_000),
    ):
        with pytest.raises(NotAdmitted):
            say(admission, payload)
    assert say(admission, seal(a, refusal())) == refusal()


def test_strangers_are_turned_away_unless_guests_are_allowed():
    admission, stranger = door(), Sealer(Key.generate(), 1)
    hello = join("c", public=stranger.key.public)
    with pytest.raises(NotAdmitted, match="sparsefleet fleet code"):
        say(admission, encode(hello), STATE, "c")
    with pytest.raises(Dismissed, match="sparsefleet fleet code"):
        say(admission, seal(stranger, hello, STATE, "c"), STATE, "c")
    with pytest.raises(NotAdmitted, match="not on the list"):
        say(admission, seal(stranger, refusal("c"), client_id="c"), client_id="c")
    assert not admission.is_welcome("c")
    generous = door(guests=Registry())
    assert say(generous, seal(stranger, hello, STATE, "c"), STATE, "c") == hello
    assert say(generous, seal(stranger, refusal("c"), client_id="c"), client_id="c") == refusal("c")
    assert generous.is_welcome("c")
    # From now on, nobody else under this name.
    for payload in (encode(refusal("c")), seal(Sealer(KEYS["b"], 1), refusal("c"), client_id="c")):
        with pytest.raises(NotAdmitted):
            say(generous, payload, client_id="c")
    # And the listed ones sign here, too.
    with pytest.raises(NotAdmitted):
        say(generous, encode(refusal()))
    # Version 0.1 does not sign at all.
    assert say(generous, encode(refusal("d")), client_id="d") == refusal("d")


def test_a_guest_cannot_bring_the_key_of_another():
    generous, sealer = door(guests=Registry()), Sealer(KEYS["a"], 1)
    with pytest.raises(NotAdmitted, match="is its card a copy"):
        say(generous, seal(sealer, join("c", public=KEYS["a"].public), STATE, "c"), STATE, "c")


def test_a_revoked_device_is_out_at_once():
    admission, sealer = door(), Sealer(KEYS["a"], 1)
    say(admission, seal(sealer, refusal()))
    admission.listed.put(Device("a", KEYS["a"].public, REVOKED, "stolen"))
    assert not admission.is_welcome("a")
    with pytest.raises(Dismissed, match="revoked: stolen") as info:
        say(admission, seal(sealer, refusal()))
    # It is told, and only who holds its key: anybody can say that he is revoked.
    device, topic = trust(1), LAB.of(TASK, "a")
    assert device.open(topic, admission.dismissal(topic, info.value)) == Dismissal("revoked: stolen")
    with pytest.raises(NotAdmitted) as forged:
        say(admission, seal(Sealer(KEYS["b"], 1), refusal()))
    assert not isinstance(forged.value, Dismissed)


def test_rubbish_inside_a_good_signature_counts_against_its_author():
    admission, sealer = door(), Sealer(KEYS["a"], 1)
    topic = LAB.of(UPDATE, "a")
    payload = sealer.seal(topic, refusal())
    signed = decode(payload)
    assert isinstance(signed, Signed)
    bad = msgspec.structs.replace(signed, payload=b"\xc1")
    bad = msgspec.structs.replace(bad, signature=KEYS["a"].sign(covered(bad, topic)))
    with pytest.raises(MalformedMessage):
        say(admission, encode(bad))


def test_the_last_state_is_news_once_to_each_start_of_the_coordinator(tmp_path):
    registry, sealer = Registry(tmp_path / "lab.db"), Sealer(KEYS["a"], 1)
    will = seal(sealer, Leave("a", 1, 1), STATE)  # Signed before the Join, as at a broker.
    joined = seal(sealer, join(), STATE)
    first = door(registry)
    assert say(first, joined, STATE) == join()
    with pytest.raises(Replayed):
        say(first, joined, STATE)
    second = door(registry)
    assert say(second, joined, STATE) == join()  # The broker retained it.
    assert say(second, will, STATE) == Leave("a", 1, 1)
    for old in (joined, will):
        with pytest.raises(Replayed):
            say(second, old, STATE)
    third = door(registry)
    with pytest.raises(Replayed):
        say(third, joined, STATE)
    assert say(third, will, STATE) == Leave("a", 1, 1)


def test_a_will_of_an_earlier_connection_is_stale():
    admission, sealer = door(), Sealer(KEYS["a"], 1)
    wills = {}
    for connection in (1, 2):
        wills[connection] = seal(sealer, Leave("a", 1, connection), STATE)
        say(admission, seal(sealer, join(connection=connection), STATE), STATE)
    with pytest.raises(Replayed):
        say(admission, wills[1], STATE)
    assert say(admission, wills[2], STATE)


def test_an_earlier_session_is_over():
    admission, old, new = door(), Sealer(KEYS["a"], 1), Sealer(KEYS["a"], 2)
    say(admission, seal(old, join(session=1), STATE), STATE)
    say(admission, seal(new, join(session=2), STATE), STATE)
    for message, kind in (
        (refusal(), UPDATE),
        (join(session=1, connection=2), STATE),
        (Leave("a", 1, 1), STATE),
    ):
        with pytest.raises(Replayed):
            say(admission, seal(old, message, kind), kind)


def test_the_envelope_and_the_message_agree_on_the_session():
    admission = door()
    with pytest.raises(NotAdmitted, match="session 2 in an envelope of session 1"):
        say(admission, seal(Sealer(KEYS["a"], 1), join(session=2), STATE), STATE)


def test_replays_and_flipped_bits_are_never_accepted_also_after_a_restart(tmp_path):
    """What the device says afterwards still is."""
    registry, rng, recorded = Registry(tmp_path / "lab.db"), random.Random(0), []
    admission = door(registry)
    for session in (1, 2):
        sealer = Sealer(KEYS["a"], session)
        will = seal(sealer, Leave("a", session, 1), STATE)
        recorded += [(STATE, seal(sealer, join(session=session), STATE))]
        recorded += [(UPDATE, seal(sealer, refusal(round_number=n))) for n in range(250)]
        for kind, payload in recorded[-251:]:
            say(admission, payload, kind)
        recorded.append((STATE, will))
    say(admission, recorded[-1][1], STATE)
    accepted = 0
    for start in range(2):
        if start:
            admission = door(registry)
            say(admission, recorded[-1][1], STATE)  # What the broker retained.
        for kind, payload in rng.choices(recorded, k=1500):
            try:
                say(admission, payload, kind)
                accepted += 1
            except Replayed:
                pass
        for kind, payload in rng.choices(recorded, k=300):
            flipped = bytearray(payload)
            bit = rng.randrange(8 * len(flipped))
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                say(admission, bytes(flipped), kind)
                accepted += 1
            except NotAdmitted:
                pass
    assert accepted == 0
    sealer = Sealer(KEYS["a"], 3)
    assert say(admission, seal(sealer, join(session=3), STATE), STATE)


def test_what_asks_for_chunks_need_not_be_signed():
    want = Want("ab" * 32, [0])
    assert say(door(), encode(want), WANT) == want


# The other direction


def trust(session=3, pinned=True) -> Trust:
    return Trust(KEYS["a"], session, KEYS["coordinator"].public if pinned else None)


def greeted(session=3, registry=None) -> Admission:
    admission = door(registry)
    say(admission, Trust(KEYS["a"], session).seal(LAB.of(STATE, "a"), join(session=session)), STATE)
    return admission


def test_a_device_obeys_its_coordinator_only():
    admission, device, topic = greeted(), trust(), LAB.of(TASK, "a")
    payload = admission.seal("a", topic, End("run"))
    assert device.open(topic, payload) == End("run")
    for other, where in (
        (payload, topic),  # Again.
        (admission.seal("a", topic, End("run")), LAB.of(TASK, "b")),
        (encode(End("run")), topic),
        (Sealer(KEYS["b"], 1).seal(topic, End("run"), 3), topic),
    ):
        with pytest.raises(NotAdmitted):
            device.open(where, other)
    with pytest.raises(ProtocolError):
        device.open(topic, b"\xc1")


def test_what_was_said_to_an_earlier_start_is_not_obeyed():
    topic, registry = LAB.of(TASK, "a"), Registry()
    recorded = greeted(3, registry).seal("a", topic, End("run"))
    with pytest.raises(Replayed):
        trust(4).open(topic, recorded)
    assert trust(3).open(topic, recorded)
    # Nor what an earlier start of the coordinator said.
    device, later = trust(3), door(registry)
    assert device.open(topic, later.seal("a", topic, End("run")))
    with pytest.raises(Replayed):
        device.open(topic, recorded)


def test_a_device_without_a_coordinators_key_believes_the_broker():
    topic = LAB.of(TASK, "a")
    device = trust(pinned=False)
    assert device.open(topic, encode(End("run"))) == End("run")
    assert device.open(topic, greeted().seal("a", topic, End("run"))) == End("run")


def test_who_does_not_sign_is_answered_without_a_signature():
    admission = door(guests=Registry())
    assert decode(admission.seal("d", LAB.of(TASK, "d"), End("run"))) == End("run")
    assert isinstance(decode(admission.seal("a", LAB.of(TASK, "a"), End("run"))), Signed)


# Copies of a card


def test_two_that_run_at_the_same_time_are_both_quarantined():
    """In any order of sessions, and never by what was recorded."""
    for other in (1, 2):  # A copy that was started as often, and one that was started more often.
        admission = door()
        first, second = Sealer(KEYS["a"], 1), Sealer(KEYS["a"], other)
        topic, heard = LAB.of(UPDATE, "a"), 1
        say(admission, seal(first, join(session=1), STATE), STATE)
        with contextlib.suppress(Replayed):
            say(admission, seal(second, join(session=other), STATE), STATE)
        for sealer in (first, second):
            with contextlib.suppress(NotAdmitted):
                say(admission, sealer.seal(topic, refusal(), heard))
        device = admission.listed.device("a")
        assert device is not None
        assert (device.status, device.reason) == ("quarantined", COPIED)
        assert admission.was_edited()
        for sealer in (first, second):
            with pytest.raises(NotAdmitted, match="card was copied"):
                say(admission, seal(sealer, refusal()))


def test_a_restarted_device_is_no_copy():
    admission, topic = door(), LAB.of(UPDATE, "a")
    recorded = []
    for session in range(1, 6):
        sealer = Sealer(KEYS["a"], session)
        will = sealer.seal(LAB.of(STATE, "a"), Leave("a", session, 1), 1)
        for kind, message in ((STATE, join(session=session)), (UPDATE, refusal())):
            payload = sealer.seal(LAB.of(kind, "a"), message, 1)
            say(admission, payload, kind)
            recorded.append((kind, payload))
        recorded.append((STATE, will))
        # Of a time when the coordinator was away, and said again now that it is back.
        recorded.append((UPDATE, sealer.seal(topic, refusal(), 0)))
    for kind, payload in recorded[:-2]:
        with pytest.raises(Replayed):
            say(admission, payload, kind)
    assert admission.is_welcome("a")
