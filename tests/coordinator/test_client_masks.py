import numpy as np

from coordinator.client_masks import ClientMasks
from protocol.sparse import Mask


def mask(*indices: int) -> Mask:
    return Mask(np.array(indices, np.int32), 100)


def test_masks_are_kept_as_long_as_there_is_room():
    masks = ClientMasks(most_bytes=5 * 4)
    assert masks.keep("a", mask(1, 2, 3), None)
    assert not masks.keep("b", mask(1, 2, 4), None)
    assert masks.get("b") is None
    assert not masks.knows("b")
    assert masks.keep("b", mask(7, 8), None)
    assert masks.knows("b")
    assert masks.keep("a", mask(5), None)  # Its old one makes room.
    assert masks.keep("c", mask(6, 9), None)
    assert not masks.keep("a", mask(1, 2, 3), None)
    assert masks.get("a") is None
    assert masks.get("c").indices.tolist() == [6, 9]


def test_what_everybody_knows_takes_no_room():
    masks = ClientMasks(most_bytes=0)
    assert masks.keep("a", mask(1, 2, 3), mask(1, 2, 3))
    assert masks.get("a") is None
