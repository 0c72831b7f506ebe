from __future__ import annotations

import numpy as np
import pytest

from protocol.errors import ArtifactError
from protocol.layout import DENSE, PRUNABLE, STATISTIC, Layout

GIVEN = [
    ("a", (2, 3), PRUNABLE),
    ("m", (2,), STATISTIC),
    ("b", (2,), DENSE),
    ("c", (4,), PRUNABLE),
    ("s", (), DENSE),
]


def test_pieces_are_ordered_by_role_and_lie_without_gaps():
    layout = Layout.of(GIVEN)
    places = [(p.name, p.offset, p.end) for p in layout.pieces]
    assert places == [("a", 0, 6), ("c", 6, 10), ("b", 10, 12), ("s", 12, 13), ("m", 13, 15)]
    assert (layout.num_prunable, layout.num_trainable, layout.size) == (10, 13, 15)


def test_views_write_through():
    layout = Layout.of(GIVEN)
    flat = np.arange(15, dtype=np.float32)
    views = layout.views(flat)
    np.testing.assert_array_equal(views["a"], [[0, 1, 2], [3, 4, 5]])
    views["c"][1] = 70
    assert flat[7] == 70


def test_flatten_is_the_inverse_of_views():
    layout = Layout.of(GIVEN)
    flat = np.arange(15, dtype=np.float32)
    np.testing.assert_array_equal(layout.flatten(layout.views(flat)), flat)


def test_a_missing_or_misshapen_tensor_is_named():
    layout = Layout.of([("a", (2,), PRUNABLE)])
    with pytest.raises(ArtifactError, match="'a' of the layout is missing"):
        layout.flatten({})
    with pytest.raises(ArtifactError, match=r"'a' has shape \(3,\)"):
        layout.flatten({"a": np.zeros(3)})


def test_the_manifest_form_gives_the_same_layout():
    layout = Layout.of(GIVEN)
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert again.digest == layout.digest


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([{"name": "a"}], "damaged"),
        ([{"name": "a", "shape": 3, "role": PRUNABLE}], "damaged"),
        ([{"name": "a", "shape": [3], "role": "other"}], "role"),
        ([{"name": "a", "shape": [3], "role": DENSE}] * 2, "same name"),
        ([{"name": "a", "shape": [2**31], "role": PRUNABLE}], "at most"),
    ],
)
def test_a_damaged_layout_is_refused(pieces, said):
    with pytest.raises(ArtifactError, match=said):
        Layout.from_json(pieces)
