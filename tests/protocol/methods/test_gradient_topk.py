from __future__ import annotations

import numpy as np

from protocol.methods.gradient_topk import GradientTopK
from protocol.sparse import SparseVector
from tests.quadratic import Federation, Quadratic, training


def a_federation(density: float = 0.25) -> Federation:
    return Federation(GradientTopK(density), [Quadratic(np.eye(4), [4, 3, 2, 1])], np.zeros(4), training(0.5))


def test_the_largest_change_is_sent_and_the_rest_waits():
    """One step of 1/2 towards [4,3,2,1]: [2,1.5,1,.5]; 2 is sent. Then from [2,0,0,0]: [1,1.5,1,.5] + [0,1.5,1,.5]."""
    made = a_federation()
    made.round()
    np.testing.assert_array_equal(made.uploads[0].dense(), [2, 0, 0, 0])
    made.round()
    np.testing.assert_array_equal(made.uploads[0].dense(), [0, 3, 0, 0])
    np.testing.assert_array_equal(made.current.weights, [2, 3, 0, 0])


def test_what_was_sent_but_not_averaged_waits_too():
    made = a_federation()
    made.round(lost=[0])
    made.round()  # Again from zero: [2,1.5,1,.5], and all of the first.
    np.testing.assert_array_equal(made.uploads[0].dense(), [4, 0, 0, 0])
    made.round()  # Now from [4,0,0,0]: [0,1.5,1,.5] more than [0,3,2,1].
    np.testing.assert_array_equal(made.uploads[0].dense(), [0, 4.5, 0, 0])


def test_what_the_wire_rounded_off_waits_as_well():
    made = a_federation(1.0)
    made.clients[0].as_sent = lambda v: SparseVector(v.mask, np.floor(v.values))
    made.round()
    np.testing.assert_array_equal(made.uploads[0].dense(), [2, 1, 1, 0])
    made.round()  # [1,1,.5,.5] and the rest [0,.5,0,.5].
    np.testing.assert_array_equal(made.uploads[0].dense(), np.floor([1, 1.5, 0.5, 1]))
