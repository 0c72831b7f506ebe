from __future__ import annotations

from coordinator.commits import MEANS, Commits


def test_a_mean_stays_for_as_long_as_it_is_some_clients_last(tmp_path):
    commits = Commits(tmp_path, {})
    commits.close(1, ["a", "b"], b"one")
    commits.close(2, ["a"], b"two")
    commits.tidy()
    assert commits.last == {"a": 2, "b": 1}
    assert commits.mean(1) == b"one"
    commits.close(3, ["b"], b"three")
    # Not before the checkpoint is written: a run that resumes from round 2 needs the mean of round 1.
    assert commits.mean(1) == b"one"
    commits.tidy()
    assert sorted(path.name for path in (tmp_path / MEANS).iterdir()) == ["2.bin", "3.bin"]
    again = Commits(tmp_path, commits.last)
    assert again.mean(again.last["a"]) == b"two"
