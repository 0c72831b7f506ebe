"""The criterion of Early-Bird tickets, and the whole way to a narrowed network."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from export.narrow import BN_SCALE, GLOBAL, Widths
from protocol.errors import ConfigError
from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout
from protocol.method import TRAIN, Global, Mean, Turn
from protocol.methods.early_bird import MASKS, WINDOW, EarlyBird, Slimming, channel_mask, difference, scales
from tests.quadratic import training
from tests.test_federation_loopback import clients, experiment, home  # noqa: F401  A fixture.
from tools.simulate import simulate

LAYOUT = Layout.of(
    [
        ("conv.weight", (4, 1), PRUNABLE),
        ("norm.weight", (4,), DENSE),
        ("norm.bias", (4,), DENSE),
        ("head.weight", (2,), DENSE),
        ("norm.running_mean", (4,), STATISTIC),
        ("norm.running_var", (4,), STATISTIC),
    ]
)


def after(scores: list[list[float]], method: EarlyBird) -> Global:
    """The server's state after rounds that end in these scales."""
    current = method.begin(LAYOUT, np.zeros(LAYOUT.size, np.float32))
    for number, gamma in enumerate(scores, 1):
        mean = np.zeros(LAYOUT.size)
        mean[scales(LAYOUT)] = np.asarray(gamma) - current.weights[scales(LAYOUT)]
        turn = Turn(number, TRAIN, 0, training())
        current = method.aggregate(turn, current, Mean(mean, 1), LAYOUT)
    return current


def test_only_norms_with_running_statistics_have_scales():
    assert scales(LAYOUT).tolist() == [4, 5, 6, 7]


def test_the_threshold_is_the_entry_at_the_pruned_share():
    gamma = np.array([0.4, 0.1, 0.3, 0.2], np.float32)
    assert channel_mask(gamma, 0.5).tolist() == [True, False, False, False]  # Above sorted[2] = 0.3.
    assert channel_mask(gamma, 0.25).tolist() == [True, False, True, False]
    assert not channel_mask(np.ones(4, np.float32), 0.25).any()  # At the start: no mask at all.


def test_the_distance_is_a_metric_on_masks():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b, c = rng.random((3, 20)) < 0.5
        assert difference(a, a) == 0.0
        assert 0.0 <= difference(a, b) == difference(b, a) <= 1.0
        assert difference(a, c) <= difference(a, b) + difference(b, c) + 1e-12
    assert difference(a, ~a) == 1.0


def test_channels_emerge_after_five_masks_that_agree_and_not_before():
    method = EarlyBird(0.25)
    steady = [[0.4, 0.1, 0.3, 0.2]]
    assert not method.is_finished(after(steady * (WINDOW - 1), method))
    assert method.is_finished(after(steady * WINDOW, method))
    moved = [*steady * 2, [0.1, 0.4, 0.3, 0.2], *steady * 2]
    assert not method.is_finished(after(moved, method))
    assert method.is_finished(after([*moved, *steady * 3], method))
    assert after(moved * 3, method).state[MASKS].shape == (WINDOW, 4)


def test_the_penalty_pulls_scales_alone_towards_zero():
    step = Slimming(scales(LAYOUT), 0.5)
    v = np.array([1, 1, 1, 1, 2, -2, 0, 1, 9, 9, 9, 9, 9, 9], np.float32)
    found = step.gradient(np.zeros_like(v), v)
    assert found.tolist() == [0, 0, 0, 0, 0.5, -0.5, 0, 0.5, 0, 0, 0, 0, 0, 0]


def test_a_model_without_batch_norm_is_refused():
    layout = Layout.of([("w.weight", (4, 1), PRUNABLE)])
    with pytest.raises(ConfigError, match="batch norm"):
        EarlyBird(0.5).begin(layout, np.zeros(4, np.float32))


@pytest.mark.slow
def test_a_search_ends_by_itself_and_its_narrowed_network_learns(home, tmp_path):  # noqa: F811
    search = experiment(home, {"name": "fedpai_s", "channels_pruned": 0.5}, rounds=30)
    final = simulate(search, clients(home), tmp_path / "search")
    rows = read_csv(tmp_path / "search" / "rounds.csv")
    assert WINDOW <= len(rows) < 30
    from coordinator import final_model
    from protocol import artifact as artifacts

    whole = artifacts.read(home / "artifact")
    final_model.write(tmp_path / "search", whole, home / "artifact", final.weights)
    widths = Widths(0.3, BN_SCALE, GLOBAL, 1)
    narrowed = export_model(
        "cnn",
        (1, 8, 8),
        10,
        tmp_path / "narrow",
        library_path(),
        widths=widths,
        weights=tmp_path / "search" / "weights.npz",
    )
    assert narrowed.manifest.layout.size < 0.4 * whole.layout.size
    assert all(after >= 1 for _, _, after, _ in narrowed.narrowed.widths)
    initial = artifacts.weights(
        (tmp_path / "narrow" / artifacts.INITIAL).read_bytes(), narrowed.manifest.layout
    )
    origin = artifacts.origin((tmp_path / "narrow" / artifacts.ORIGIN).read_bytes(), narrowed.manifest)
    np.testing.assert_array_equal(initial, final.weights[origin.indices])

    small = experiment(home, {"name": "fedavg"}, rounds=4)
    small.artifact = str(tmp_path / "narrow")
    simulate(small, clients(home), tmp_path / "small")
    last = read_csv(tmp_path / "small" / "rounds.csv")[-1]
    assert float(last["accuracy"]) > 0.9
    assert int(last["upload_bytes"]) < 0.4 * int(rows[-1]["upload_bytes"])
