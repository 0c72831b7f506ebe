from __future__ import annotations

import msgspec

from coordinator.fleet import Fleet
from protocol.messages import Join, Leave


def join(session: int) -> Join:
    return Join("a", session, 1, "r", "k", "p", "e")


def test_a_client_is_new_once_for_each_start():
    fleet = Fleet()
    assert fleet.join(join(1))
    assert not fleet.join(join(1))  # Announced again after a reconnect.
    assert fleet.join(join(2))


def test_the_will_of_an_earlier_start_is_stale():
    fleet = Fleet()
    fleet.join(join(2))
    assert not fleet.leave(Leave("a", 1))
    assert "a" in fleet.present
    assert fleet.leave(Leave("a", 2))
    assert "a" not in fleet.present
    assert not fleet.leave(Leave("a", 2))


def test_the_will_of_an_earlier_connection_is_stale():
    fleet = Fleet()
    fleet.join(msgspec.structs.replace(join(1), connection=2))
    assert not fleet.leave(Leave("a", 1, 1))
    assert "a" in fleet.present
    assert fleet.leave(Leave("a", 1, 2))


def test_a_join_of_an_earlier_start_is_stale():
    fleet = Fleet()
    fleet.join(join(2))
    assert not fleet.join(join(1))
    assert fleet.present["a"].session == 2
