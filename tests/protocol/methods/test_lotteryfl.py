from __future__ import annotations

import numpy as np

from protocol.layout import PRUNABLE, Layout
from protocol.method import TRAIN, Mean, Turn
from protocol.methods.lotteryfl import LotteryFL
from tests.quadratic import Federation, Quadratic, training

LAYOUT = Layout.of([("w", (8,), PRUNABLE)])


def test_a_good_ticket_is_pruned_and_rewound_until_it_is_small_enough():
    client = Quadratic(np.eye(8), np.arange(1, 9) / 10, LAYOUT)
    initial = np.full(8, 0.3, np.float32)
    method = LotteryFL(0.5, rate=0.25, loss_threshold=0.2)
    made = Federation(method, [client], initial, training(0.5, 6))
    sizes, rewound = [], []
    for _ in range(6):
        assert method.inputs(made.turn(), made.memories[0]) == (
            ("weights",) if "done" in made.memories[0] else ("weights", "initial")
        )
        client.seen.clear()
        made.round()
        sizes.append(made.uploads[0].mask.nnz)
        kept = made.uploads[0].mask.indices
        rewound.append(np.array_equal(client.seen[0][kept], initial[kept]))
    # The initial model's loss is .31, too much to prune. Then 8 -> 6 -> 4 (4.5, but 4 are wanted).
    assert sizes == [8, 6, 4, 4, 4, 4]
    assert rewound == [True, True, True, False, False, False]
    assert made.uploads[0].mask.indices.tolist() == [4, 5, 6, 7]


def test_a_bad_ticket_stays():
    client = Quadratic(np.eye(8), np.full(8, 9.0), LAYOUT)
    made = Federation(LotteryFL(0.5), [client], np.zeros(8), training(0.01))
    for _ in range(3):
        made.round()
    assert made.uploads[0].mask.nnz == 8
    assert "ticket" not in made.memories[0]


def test_tickets_are_averaged_where_they_overlap_and_the_rest_stays():
    layout, method = Layout.of([("w", (3,), PRUNABLE)]), LotteryFL(0.5)
    mean = Mean(np.array([6.0, 3.0, 0.0]) / 3, 3, np.array([2 / 3, 1 / 3, 0.0]))
    start = method.begin(layout, np.full(3, 7, np.float32))
    found = method.aggregate(Turn(1, TRAIN, 0, training()), start, mean, layout)
    np.testing.assert_allclose(found.weights, [3, 3, 7])
