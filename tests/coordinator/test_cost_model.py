from __future__ import annotations

import pytest

from coordinator.cost_model import ROUNDS, CostModel, Step


def model(*steps: tuple[float, float, float | None]) -> CostModel:
    """Of a client that has had its first round."""
    made = CostModel(is_warm=True)
    for step in steps:
        made.add(Step(*step))
    return made


def test_nothing_known_is_none():
    assert model().step_s(0.5) is None
    assert model((0.5, 1.0, None)).step_j(0.5) is None


def test_a_line_through_two_densities():
    made = model((1.0, 0.5, 2.0), (0.5, 0.3, 1.5))  # 0.1 + 0.4 d seconds, 1 + d joules.
    assert made.step_s(0.1) == pytest.approx(0.14)
    assert made.step_j(0.1) == pytest.approx(1.1)


def test_one_density_is_a_mean_for_all():
    made = model((1.0, 0.5, 2.0), (0.95, 0.3, 1.0))
    assert made.step_s(0.1) == pytest.approx(0.4)
    assert made.step_j(1.0) == pytest.approx(1.5)


def test_a_sparser_step_is_never_thought_dearer_and_no_step_cheaper_than_nothing():
    assert model((1.0, 0.3, 1.0), (0.1, 0.5, 2.0)).step_s(0.0) == pytest.approx(0.4)
    # The line would cross zero at 0.5: through the origin instead.
    assert model((1.0, 1.0, 1.0), (0.5, 0.0, 0.0)).step_s(0.1) == pytest.approx(0.1 * 1.0 / 1.25)


def test_a_profile_serves_until_rounds_tell():
    made = CostModel((Step(1.0, 0.5, 2.0), Step(0.1, 0.14, 1.1)), is_warm=True)
    assert made.step_s(0.5) == pytest.approx(0.3)
    for _ in range(ROUNDS):  # The board is twice as slow here, at the density of this run.
        made.add(Step(0.5, 0.6, 4.0))
    assert made.step_s(0.5) == pytest.approx(0.6, rel=0.1)


def test_old_rounds_are_forgotten():
    made = model(*[(1.0, 9.0, 9.0)] * 5, *[(1.0, 1.0, 1.0)] * ROUNDS)
    assert made.step_s(1.0) == 1.0


def test_rounds_without_joules_still_tell_seconds():
    made = model((1.0, 0.5, None), (1.0, 0.7, 2.0))
    assert (made.step_s(1.0), made.step_j(1.0)) == (pytest.approx(0.6), 2.0)


def test_the_first_round_counts_only_until_there_is_a_second():
    made = CostModel((Step(0.1, 0.2, 0.2),))
    for seconds, expected in ((9.0, None), (1.0, 1.0), (3.0, 2.0)):
        made.add(Step(1.0, seconds, seconds))
        assert expected is None or made.step_s(1.0) == pytest.approx(expected, rel=0.01)
    assert [step.seconds for step in made.rounds] == [1.0, 3.0]
    cold = CostModel()
    for joules in (9.0, None):
        cold.add(Step(1.0, 9.0, joules))
    assert cold.step_j(1.0) == 9.0  # Too much is better than nothing.
