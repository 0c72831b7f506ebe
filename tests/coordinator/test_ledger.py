"""What a killed coordinator finds again."""

import sqlite3

import pytest

from coordinator.ledger import LEDGER, Ledger
from protocol.blobs import ref_of
from protocol.errors import ConfigError
from protocol.messages import Update


def an_update(client_id: str, round_number: int = 3, body: bytes = b"body") -> Update:
    return Update(
        client_id=client_id,
        session=1,
        run="run",
        round_number=round_number,
        stage="train",
        num_examples=5,
        body=ref_of(body),
        loss=0.5,
        num_steps=2,
        phases=[],
        peak_rss_bytes=1,
    )


def test_a_round_is_found_again_as_it_was(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.opened() is None
    ledger.open(3, ["b", "a"], ["a", "b", "c"])
    ledger.accept(3, [(an_update("b"), b"body")])
    ledger.accept(3, [(an_update("a", body=b"other"), b"other")])
    # No close: as after kill -9.
    again = Ledger(tmp_path)
    opened = again.opened()
    assert (opened.number, opened.cohort, opened.present) == (3, ["b", "a"], ["a", "b", "c"])
    assert list(again.accepted(3)) == [(an_update("b"), b"body"), (an_update("a", body=b"other"), b"other")]
    assert again.accepted_clients(3) == {"a", "b"}
    assert again.instance == ledger.instance


def test_of_earlier_rounds_only_digests_stay(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.open(3, ["a"], ["a"])
    ledger.accept(3, [(an_update("a"), bytes(1 << 20))])
    ledger.open(4, ["a"], ["a"])
    assert list(ledger.accepted(3)) == []
    assert ledger.knows(an_update("a"))
    assert not ledger.knows(an_update("a", round_number=4))
    assert not ledger.knows(an_update("a", body=b"another"))


def test_a_batch_is_kept_as_a_whole_or_not_at_all(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.open(3, ["a", "b"], ["a", "b"])
    ledger.accept(3, [(an_update("a"), b"body")])
    with pytest.raises(sqlite3.IntegrityError):
        ledger.accept(3, [(an_update("b"), b"body"), (an_update("a"), b"body")])
    assert ledger.accepted_clients(3) == {"a"}
    ledger.accept(3, [(an_update("b"), b"body")])
    assert ledger.accepted_clients(3) == {"a", "b"}


def test_quarantine_is_remembered(tmp_path):
    Ledger(tmp_path).quarantine("a", "rubbish")
    again = Ledger(tmp_path)
    again.quarantine("a", "more rubbish")
    assert again.quarantined() == {"a"}


def test_two_runs_have_two_names(tmp_path):
    (tmp_path / "other").mkdir()
    assert Ledger(tmp_path).instance != Ledger(tmp_path / "other").instance


@pytest.mark.parametrize("content", [b"rubbish" * 1000, None], ids=["damaged", "newer"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    if content is None:
        Ledger(tmp_path).close()
        with sqlite3.connect(tmp_path / LEDGER) as database:
            database.execute("PRAGMA user_version = 9")
    else:
        (tmp_path / LEDGER).write_bytes(content)
    with pytest.raises(ConfigError, match=LEDGER):
        Ledger(tmp_path)
