from __future__ import annotations

import pytest

from coordinator.accounts import LAST_ROUNDS, SPAN_S, Accounts
from coordinator.cost_model import Step
from coordinator.energy_cohort import DAY_S
from protocol.messages import Join, Phase

JOIN = Join("a", 1, 100, "r", "k", "rpi5", "pmic", energy_scope="board_input")


def train(joules: float | None, steps: int = 10, seconds: float = 5.0, **more: object) -> Phase:
    return Phase("train", seconds, 1.0, joules, 0.1, "pmic", num_steps=steps, **more)  # type: ignore[arg-type]


def other(name: str, joules: float | None, seconds: float = 1.0, **more: object) -> Phase:
    return Phase(name, seconds, 0.1, joules, 0.1, "pmic", **more)  # type: ignore[arg-type]


def books() -> Accounts:
    made = Accounts()
    made.join(JOIN, 0, 0.0)
    return made


def spends(made: Accounts, now_s: float = 100.0) -> float:
    return made.device("a", 1, 0, 1.0).spent_j(now_s)


def test_work_is_spent_and_waiting_is_not():
    made = books()
    made.record("a", 1, [other("idle", 500.0), other("receive", 2.0), train(20.0)], 1.0, 10.0)
    made.record("a", 1, [other("upload", 3.0)], 1.0, 11.0)
    assert spends(made) == 25.0


def test_the_next_round_is_foretold_by_the_steps_and_the_costliest_rest():
    made = books()
    made.record("a", 1, [other("receive", 2.0), train(20.0)], 1.0, 10.0)
    made.record("a", 1, [other("upload", 3.0)], 1.0, 11.0)
    made.record("a", 2, [other("receive", 1.0), train(20.0)], 1.0, 20.0)
    assert made.predicted_j("a", 10, 1.0) == pytest.approx(20.0 + 5.0)
    assert made.predicted_j("a", 5, 1.0) == pytest.approx(10.0 + 5.0)


def test_a_costly_round_of_long_ago_is_forgotten():
    made = books()
    made.record("a", 0, [other("prune", 1000.0)], 1.0, 0.0)  # Scores, once.
    for number in range(1, LAST_ROUNDS + 1):
        made.record("a", number, [other("receive", 2.0), train(20.0)], 1.0, 10.0 * number)
    assert made.predicted_j("a", 10, 1.0) == pytest.approx(22.0)


def test_a_phase_without_a_figure_is_counted_at_the_highest_power():
    made = books()
    made.record("a", 1, [train(20.0, seconds=5.0), other("encode", 1.0, seconds=1.0)], 1.0, 10.0)
    made.record("a", 2, [train(None, seconds=10.0)], 1.0, 20.0)
    assert spends(made) == pytest.approx(21.0 + 10.0 * 4.0)
    assert made.by_client["a"].model.step_j(1.0) == 2.0  # And nothing is learned from it.


def test_who_was_asked_counts_as_predicted_until_it_reports():
    made = books()
    made.ask("a", 1, 30.0, 5.0)
    assert spends(made) == 30.0
    made.record("a", 1, [train(20.0)], 1.0, 10.0)
    assert spends(made) == 20.0
    made.ask("a", 2, 25.0, 15.0)  # It is lost in this round,
    made.ask("a", 3, 25.0, 25.0)  # and asked again.
    assert spends(made) == 20.0 + 25.0 + 25.0
    assert made.device("a", 4, 0, 1.0).last_asked == 3


def test_a_day_later_it_is_forgotten():
    made = books()
    made.record("a", 1, [train(20.0)], 1.0, 10.0)
    made.record("a", 2, [train(30.0)], 1.0, 10.0 + DAY_S)
    assert spends(made, 10.0 + DAY_S) == 30.0
    assert len(made.by_client["a"].device.spends) == 1


def test_a_device_is_as_it_last_said():
    made = books()
    phases = [
        train(20.0, temperature_c=81.0, throttling="throttled"),
        other("upload", 1.0, temperature_c=70.0),
    ]
    made.record("a", 1, phases, 1.0, 10.0)
    device = made.device("a", 2, 0, 1.0)
    assert (device.temperature_c, device.throttling, device.seen_s) == (81.0, "throttled", 10.0)
    again = Join(
        "a",
        1,
        100,
        "r",
        "k",
        "rpi5",
        "pmic",
        energy_scope="board_input",
        temperature_c=50.0,
        battery_percent=40.0,
    )
    made.join(again, 2, 70.0)
    device = made.device("a", 2, 0, 1.0)
    assert (device.temperature_c, device.throttling, device.battery_percent, device.seen_s) == (
        50.0,
        "",
        40.0,
        70.0,
    )


def test_a_join_that_says_nothing_changes_nothing():
    made = books()
    made.record("a", 1, [train(20.0, throttling="throttled")], 1.0, 10.0)
    made.join(JOIN, 2, 70.0)
    assert (made.device("a", 2, 0, 1.0).throttling, made.device("a", 2, 0, 1.0).seen_s) == ("throttled", 10.0)


def test_a_device_without_a_source_reports_no_joules():
    made = Accounts()
    made.join(Join("a", 1, 100, "r", "k", "unknown", "none", energy_scope="none"), 0, 0.0)
    assert not made.device("a", 1, 0, 1.0).reports_joules


def test_a_board_profile_foretells_the_first_round():
    made = Accounts({"rpi5": (Step(1.0, 0.5, 2.0), Step(0.1, 0.1, 0.5))})
    made.join(JOIN, 0, 0.0)
    assert made.predicted_j("a", 10, 1.0) == pytest.approx(20.0)
    assert made.predicted_j("a", 10, 0.1) == pytest.approx(5.0)


def test_days_of_short_rounds_take_little_memory_and_lose_no_joule():
    made = books()
    for number in range(20_000):
        made.record("a", number, [train(1.0)], 1.0, 10.0 * number)
    now_s = 10.0 * 19_999
    entries = made.by_client["a"].device.spends
    assert len(entries) <= DAY_S / SPAN_S + 1
    # Of a day, and of no more than one span before it.
    assert DAY_S / 10 <= spends(made, now_s) <= (DAY_S + SPAN_S) / 10
