from __future__ import annotations

import hashlib

import numpy as np

from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout
from protocol.seeded import geometric, initial, uniform, words

LAYOUT = Layout.of(
    [
        ("conv.weight", (64, 32, 3, 3), PRUNABLE),
        ("fc.weight", (10, 576), PRUNABLE),
        ("norm.weight", (64,), DENSE),
        ("norm.bias", (64,), DENSE),
        ("attention.in_proj_bias", (12,), DENSE),
        ("position", (1, 50, 20), DENSE),
        ("norm.running_mean", (64,), STATISTIC),
        ("norm.running_var", (64,), STATISTIC),
    ]
)


def test_every_machine_draws_these_bits():
    """Golden: a board with another NumPy or processor must draw the same model."""
    assert hashlib.sha256(initial(LAYOUT, 7).astype("<f4").tobytes()).hexdigest() == GOLDEN
    assert words(2, "a", 1).tolist() == GOLDEN_WORDS


GOLDEN = "aac7e67b90fcd5438e4fd23225c12527b101bd4bb95e66494bbc1cb21bc3a590"
GOLDEN_WORDS = [12100088058179327416, 5170796255665330153]


def test_variances_follow_fan_in_and_the_rest_is_neutral():
    views = LAYOUT.views(initial(LAYOUT, 7))
    for name, fan_in in (("conv.weight", 288), ("fc.weight", 576)):
        drawn = views[name]
        assert abs(drawn.std() / np.sqrt(2 / fan_in) - 1) < 0.03
        assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(drawn.size)
        assert np.abs(drawn).max() < 3.5 * np.sqrt(2 / fan_in)
    assert (views["norm.weight"] == 1).all()
    assert (views["norm.running_var"] == 1).all()
    for name in ("norm.bias", "attention.in_proj_bias", "norm.running_mean"):
        assert not views[name].any()
    assert abs(views["position"].std() / 0.02 - 1) < 0.1


def test_gain_scales_and_seed_changes():
    two, one = initial(LAYOUT, 7, 2.0), initial(LAYOUT, 7, 1.0)
    part = LAYOUT.by_name["fc.weight"].part
    np.testing.assert_allclose(two[part], one[part] * np.sqrt(2), rtol=1e-6)
    assert np.abs(np.corrcoef(two[part], initial(LAYOUT, 8)[part])[0, 1]) < 0.05


def test_steps_are_geometric_and_alike_for_all():
    drawn = [geometric(0.1, 0, "steps", number) for number in range(4000)]
    assert min(drawn) == 1
    assert abs(np.mean(drawn) - 10) < 0.6  # Deviation 9.5 / sqrt(4000) = 0.15.
    assert drawn[5] == geometric(0.1, 0, "steps", 5)
    assert geometric(1.0, 0) == 1
    assert 0 < uniform(1000, "u").min() < uniform(1000, "u").max() < 1
