"""Masks for measuring: ERK densities by hand, and what share of the arithmetic a mask leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protocol.layout import Layout
from protocol.sparse import Mask
from tools.bench.masks import erk_densities, flop_density, random_mask

RESNET_LIKE = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 64, 1, 1), (512, 512, 3, 3), (10, 512)]


def test_erk_is_proportional_to_the_sum_of_dimensions_over_their_product():
    # 10 + 20 by 200 is 0.15 and 20 + 40 by 800 is 0.075: the smaller tensor is twice as dense.
    small, large = erk_densities([(10, 20), (20, 40)], 0.1)
    assert small == pytest.approx(2 * large)
    assert small * 200 + large * 800 == pytest.approx(0.1 * 1000)


def test_erk_caps_at_one_and_shares_out_the_rest():
    # Uncapped: 52 weights shared out as 4 to 20 over 4 and 100 places, 2.2 for the first.
    densities = erk_densities([(2, 2), (10, 10)], 0.5)
    assert densities[0] == 1.0
    assert densities[1] == pytest.approx((0.5 * 104 - 4) / 100)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.5, 1.0])
def test_erk_keeps_the_whole_density(density):
    densities = erk_densities(RESNET_LIKE, density)
    sizes = [math.prod(shape) for shape in RESNET_LIKE]
    kept = sum(share * size for share, size in zip(densities, sizes, strict=True))
    assert kept == pytest.approx(density * sum(sizes))
    assert all(0 < share <= 1 for share in densities)


@pytest.fixture
def layout() -> Layout:
    return Layout.of(
        [("conv", (4, 2, 3, 3), "prunable"), ("fc", (10, 64), "prunable"), ("bias", (10,), "dense")]
    )


def test_flop_density_counts_a_convolution_once_for_each_output_pixel(layout):
    # 7 of 72 weights at 25 pixels, 64 of 640 at one; the bias, always stored, is no multiplication.
    kept = np.concatenate([np.arange(7), 72 + np.arange(64)])
    found = flop_density(Mask.of_model(kept, layout), layout, {"conv": 25, "fc": 1})
    assert found == pytest.approx((7 * 25 + 64) / (72 * 25 + 640))


def test_flop_density_of_the_dense_model_is_one(layout):
    assert flop_density(Mask.full(layout.size), layout, {"conv": 25, "fc": 1}) == 1.0


@pytest.mark.parametrize("masks", ["uniform", "erk"])
def test_a_random_mask_has_the_density_and_all_that_is_never_pruned(layout, masks):
    mask = random_mask(layout, 0.25, masks, np.random.default_rng(0))
    assert mask.below(layout.num_prunable).nnz == pytest.approx(0.25 * layout.num_prunable, abs=1)
    assert mask.nnz - mask.below(layout.num_prunable).nnz == 10
    in_conv = mask.below(72).nnz
    # Sums of dimensions over products: 12 / 72 and 74 / 640, so ERK keeps 178 * 12 / 86 of conv.
    assert in_conv == (18 if masks == "uniform" else 25)


def test_every_tensor_keeps_a_weight(layout):
    mask = random_mask(layout, 1e-6, "uniform", np.random.default_rng(0))
    assert mask.below(layout.num_prunable).nnz == 2
