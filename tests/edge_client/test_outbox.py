"""What a killed client finds again."""

import numpy as np
import pytest

from edge_client.outbox import OUTBOX, Outbox, Parcel
from edge_client.spool import MEMORIES, Spool
from protocol.blobs import ref_of
from protocol.messages import Task, Training, Update

TASK = Task(
    run="run",
    round_number=3,
    method="proxskip",
    settings={"density": 0.1},
    stage="train",
    training=Training(local_epochs=1, batch_size=8, learning_rate=0.1),
    seed=1,
    deadline_s=60,
    artifact=ref_of(b"manifest"),
)
BODY = b"body" * 100
UPDATE = Update(
    client_id="a",
    session=1,
    run="run",
    round_number=3,
    stage="train",
    num_examples=5,
    body=ref_of(BODY),
    loss=0.5,
    num_steps=2,
    phases=[],
    peak_rss_bytes=1,
)
PARCEL = Parcel(TASK, UPDATE, BODY, b"", "0" * 64)
MEMORY = {"control": np.arange(5, dtype=np.float32), "pending": np.array(3)}


def test_an_update_and_its_memory_are_found_again(tmp_path):
    Outbox(tmp_path, Spool(tmp_path)).keep(PARCEL, "run-1", MEMORY)
    spool = Spool(tmp_path)
    assert Outbox(tmp_path, spool).last() == PARCEL
    np.testing.assert_equal(spool.memory("run-1"), MEMORY)


def test_memory_follows_the_update_when_the_client_died_between_the_two(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    spool.keep("run-1", {"control": np.zeros(5, np.float32)})
    with monkeypatch.context() as patch:
        patch.setattr(spool, "keep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Outbox(tmp_path, spool).keep(PARCEL, "run-1", MEMORY)
    again = Spool(tmp_path)
    assert Outbox(tmp_path, again).last() == PARCEL
    np.testing.assert_equal(again.memory("run-1"), MEMORY)


def test_nothing_is_found_where_nothing_was_kept(tmp_path):
    assert Outbox(tmp_path, Spool(tmp_path)).last() is None


def test_a_file_cut_short_or_spoiled_anywhere_is_as_none(tmp_path):
    spool = Spool(tmp_path)
    outbox = Outbox(tmp_path, spool)
    outbox.keep(PARCEL, "run-1", MEMORY)
    whole = (tmp_path / OUTBOX).read_bytes()
    spool.keep("run-1", {"control": np.ones(5, np.float32)})
    for length in range(len(whole)):
        (tmp_path / OUTBOX).write_bytes(whole[:length])
        assert outbox.last() is None, length
    for place in range(0, len(whole), 7):
        (tmp_path / OUTBOX).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert outbox.last() is None, place
    np.testing.assert_equal(spool.memory("run-1"), {"control": np.ones(5, np.float32)})


def test_what_methods_remember_of_old_runs_does_not_pile_up(tmp_path):
    spool = Spool(tmp_path)
    for number in range(MEMORIES + 3):
        spool.keep(f"run-{number}", MEMORY)
    assert len(list(tmp_path.glob("memory-*.npz"))) == MEMORIES
    assert spool.memory(f"run-{MEMORIES + 2}")
