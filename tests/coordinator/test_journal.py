from __future__ import annotations

import numpy as np
import pytest

from coordinator.journal import CHECKPOINT, Checkpoint, restore, save
from protocol import durable
from protocol.errors import ConfigError
from protocol.method import Global
from protocol.sparse import Mask, SparseVector


def checkpoint(next_round: int = 4) -> Checkpoint:
    mask = Mask(np.array([1, 5, 6], np.int32), 8)
    weights = SparseVector(mask, np.array([0.5, -1.0, 3e-8], np.float32)).dense()
    state = {"momentum": np.array([[1.5, -2.0]]), "rounds": np.asarray(7)}
    return Checkpoint(
        "run-1", "ab" * 32, next_round, Global(weights, mask, state), 12.5, {"pi3": 2, "pi4": 3}
    )


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, checkpoint())
    found = restore(tmp_path, "ab" * 32)
    assert (found.run, found.next_round, found.duration_s) == ("run-1", 4, 12.5)
    assert found.current.weights.tobytes() == checkpoint().current.weights.tobytes()
    assert found.current.mask.same(checkpoint().current.mask)
    assert found.averaged == {"pi3": 2, "pi4": 3}
    assert list(found.current.state) == ["momentum", "rounds"]
    for name, array in checkpoint().current.state.items():
        assert found.current.state[name].dtype == array.dtype
        np.testing.assert_array_equal(found.current.state[name], array)


def test_every_truncation_is_an_error_that_the_user_understands(tmp_path):
    save(tmp_path, checkpoint())
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for end in range(len(whole)):
        (tmp_path / CHECKPOINT).write_bytes(whole[:end])
        with pytest.raises(ConfigError):
            restore(tmp_path, "ab" * 32)


def test_another_artifact_or_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing can be resumed"):
        restore(tmp_path, "ab" * 32)
    save(tmp_path, checkpoint())
    with pytest.raises(ConfigError, match="another artifact"):
        restore(tmp_path, "cd" * 32)


def test_a_crash_before_the_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, checkpoint(4))

    def power_cut(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(durable.os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        save(tmp_path, checkpoint(5))
    monkeypatch.undo()
    assert restore(tmp_path, "ab" * 32).next_round == 4
