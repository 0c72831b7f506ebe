from __future__ import annotations

import numpy as np
import pytest

from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.pruning import densities, largest, prune, stored_parts, support
from protocol.sparse import Mask, SparseVector

LAYOUT = Layout.of([("a", (4,), PRUNABLE), ("b", (6,), PRUNABLE), ("bias", (2,), DENSE)])
VALUES = np.array([9, -8, 7, 6, 0.1, 0.2, -0.3, 0.4, 0.5, 0.6, 0, 0.01], np.float32)
DENSE_MODEL = SparseVector(Mask.full(12), VALUES)


@pytest.mark.parametrize(
    ("scope", "floor", "expected"),
    [
        ("global", 0.0, [0, 1, 2, 3]),  # 10 - round(0.6 * 10) = 4: all of a.
        ("layer", 0.0, [0, 1, 8, 9]),  # 4 - round(2.4) = 2 of a, 6 - round(3.6) = 2 of b.
        ("global", 0.5, [0, 1, 2, 9]),  # 0.2 of each first: 4 - 3 = 1 and 6 - 5 = 1; then 8 and 7.
    ],
)
def test_which_weights_stay(scope, floor, expected):
    found = prune(DENSE_MODEL, LAYOUT, 0.4, scope, floor)
    assert found.mask.indices.tolist() == [*expected, 10, 11]
    np.testing.assert_array_equal(found.dense()[expected], VALUES[expected])


def test_layers_are_counted_by_their_size_and_not_by_what_is_stored():
    stored = SparseVector.of(VALUES, Mask.of_model([0, 4, 5, 6, 9], LAYOUT))
    assert [s for s, _ in stored_parts(stored.mask, LAYOUT)] == [slice(0, 1), slice(1, 5)]
    assert densities(stored.mask, LAYOUT) == {"a": 0.25, "b": pytest.approx(4 / 6)}
    found = prune(stored, LAYOUT, 0.5, "layer")
    assert found.mask.indices.tolist() == [0, 5, 6, 9, 10, 11]  # 2 of a, of which 1 is stored; 3 of b.


def test_no_layer_is_ever_emptied_by_its_own_share():
    assert len(largest(np.abs(VALUES[:10]), Mask.full(10), LAYOUT, 0.01, "layer")) == 2


def test_zeros_are_not_stored():
    model = SparseVector(Mask.full(12), np.where(np.arange(12) == 1, 0, VALUES).astype(np.float32))
    assert prune(model, LAYOUT, 1.0).mask.nnz == 11
    assert support(model.values, LAYOUT).indices.tolist() == [0, *range(2, 12)]
