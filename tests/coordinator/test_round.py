from __future__ import annotations

import pytest

from coordinator.round import Round, Standing


@pytest.fixture
def open_round() -> Round:
    return Round(3, "train", ("a", "b", "c"), quorum=2, opened_s=100.0, deadline_s=10.0)


def test_a_round_closes_when_the_quorum_is_met(open_round):
    for client in ("a", "b"):
        assert not open_round.is_closed(101)
        assert open_round.announce(client, 3, 101) == "accepted"
        assert open_round.complete(client, 102) == "accepted"
    assert open_round.is_closed(102)
    assert open_round.announce("c", 3, 103) == "late"


def test_a_round_closes_at_its_deadline_and_not_before(open_round):
    assert not open_round.is_closed(109.999)
    assert open_round.is_closed(110.0)
    assert not open_round.is_settled


def test_a_round_closes_when_nobody_is_left(open_round):
    for client in ("a", "b", "c"):
        assert not open_round.is_closed(101)
        open_round.drop(client, "lost")
    assert open_round.is_closed(101)
    assert open_round.reasons == {"a": "lost", "b": "lost", "c": "lost"}


def test_a_redelivered_announcement_counts_once(open_round):
    assert open_round.announce("a", 3, 101) == "accepted"
    assert open_round.announce("a", 3, 101) == "duplicate"
    assert open_round.complete("a", 101) == "accepted"
    assert open_round.announce("a", 3, 101) == "duplicate"
    assert open_round.complete("a", 101) == "duplicate"
    assert open_round.of(Standing.DONE) == ["a"]


@pytest.mark.parametrize(("client", "number"), [("a", 2), ("a", 4), ("stranger", 3)])
def test_another_round_or_a_stranger_is_late(open_round, client, number):
    assert open_round.announce(client, number, 101) == "late"
    assert open_round.of(Standing.SENDING) == []


def test_an_update_that_completes_after_the_deadline_is_late(open_round):
    open_round.announce("a", 3, 101)
    assert open_round.complete("a", 110.0) == "late"


def test_what_is_done_stays_done_when_its_client_is_lost(open_round):
    open_round.announce("a", 3, 101)
    open_round.complete("a", 101)
    open_round.drop("a", "lost")
    assert open_round.of(Standing.DONE) == ["a"]
    assert not open_round.rejoin("a", 102)


def test_a_lost_client_that_is_back_is_asked_again(open_round):
    open_round.announce("a", 3, 101)
    open_round.drop("a", "lost")
    assert open_round.rejoin("a", 102)
    assert open_round.of(Standing.ASKED) == ["a", "b", "c"]
    assert open_round.announce("a", 3, 103) == "accepted"
    assert not open_round.rejoin("a", 110.0)  # Too late.
    assert not open_round.rejoin("stranger", 103)


def test_a_round_without_updates_waits_for_those_who_are_gone(open_round):
    open_round.drop("a", "out of memory")
    for client in ("b", "c"):
        open_round.drop(client, "lost", is_away=True)
    assert not open_round.is_settled
    assert open_round.rejoin("b", 101)
    open_round.announce("b", 3, 101)
    open_round.complete("b", 102)
    assert open_round.is_settled  # Below the quorum, but c may never come back.
    assert open_round.is_closed(110.0)
