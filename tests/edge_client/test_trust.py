"""What lies in a device's state folder, and what happens when some of it is lost."""

from __future__ import annotations

import pytest

from edge_client.spool import Spool
from edge_client.trust import Trust
from protocol.errors import DataError
from protocol.messages import Hello


def start(folder) -> Trust:
    return Trust.at(folder, Spool(folder).next_session())


def test_each_start_has_its_number_and_all_have_one_key(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    assert (first.session, second.session) == (1, 2)
    assert first.public == second.public


@pytest.mark.parametrize("name", ["session", "session.copy"])
@pytest.mark.parametrize("damage", [None, b"", b"4x", bytes(100)])
def test_the_number_survives_the_loss_of_one_of_its_files(name, damage, tmp_path):
    for _ in range(3):
        start(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    assert start(tmp_path).session == 4


def test_a_key_without_its_count_is_not_used(tmp_path):
    start(tmp_path)
    for name in ("session", "session.copy"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"lost the count of this device's starts.*pair anew"):
        start(tmp_path)


def test_a_folder_that_takes_nothing_is_named(tmp_path):
    spool = Spool(tmp_path)
    (tmp_path / "session").mkdir()
    with pytest.raises(DataError, match=f"cannot be written down in {tmp_path}"):
        spool.next_session()


def test_another_coordinators_key_is_said_aloud(tmp_path, caplog):
    trust = start(tmp_path)
    trust.pin(b"a" * 32)
    trust.hear(Hello(True, 1, b"a" * 32))
    assert not caplog.records
    trust.hear(Hello(True, 2, b"b" * 32))
    assert "To pair anew, remove" in caplog.text
    assert str(tmp_path / "identity" / "coordinator.pub") in caplog.text
