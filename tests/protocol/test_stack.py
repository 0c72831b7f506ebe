from __future__ import annotations

import numpy as np

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.sparse import Mask, SparseVector
from protocol.stack import stack, stacked_size, unstack

LAYOUT = Layout.of([("w", (4,), PRUNABLE), ("b", (2,), DENSE)])


def test_two_vectors_become_one_with_a_prunable_prefix_and_come_back():
    first = SparseVector(Mask.of_model([1, 3], LAYOUT), np.array([1, 3, 10, 11], np.float32))
    second = SparseVector(Mask.of_model([0], LAYOUT), np.array([5, 20, 21], np.float32))
    both = stack(first, second, LAYOUT)
    assert stacked_size(LAYOUT) == (both.mask.size, 8)
    np.testing.assert_array_equal(both.dense(), [0, 1, 0, 3, 5, 0, 0, 0, 10, 11, 20, 21])
    for made, given in zip(unstack(both.dense(), LAYOUT), (first, second), strict=True):
        np.testing.assert_array_equal(made, given.dense())
