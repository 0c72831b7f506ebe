from __future__ import annotations

import csv
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.cost_model import Step
from coordinator.experiment import CohortConfig, Experiment
from coordinator.planner import Planner
from coordinator.report import DEVICES, ROUNDS, device_rows
from protocol.messages import BlobRef, Join, Phase, Training, Update
from protocol.method import Turn
from tests.tools.energy_report.runs import row as round_row


def planner(
    now: list[float], profiles: dict[str, tuple[Step, ...]] | None = None, **cohort: object
) -> Planner:
    experiment = Experiment(
        artifact="a",
        data="d",
        rounds=10,
        method={"name": "fedavg"},
        training=TRAINING,
        cohort=CohortConfig(clients=2, **cohort),  # type: ignore[arg-type]
    )
    return Planner(experiment, profiles or {}, lambda: now[0])


def join(name: str, **more: object) -> Join:
    return Join(name, 1, 100, "r", "k", "rpi5", "pmic", energy_scope="board_input", **more)  # type: ignore[arg-type]


def joined(made: Planner, *joins: Join) -> dict[str, Join]:
    for one in joins:
        made.heard(one)
    return {one.client_id: one for one in joins}


def trained(seconds: float, joules: float, steps: int = 20, **more: object) -> Phase:
    return Phase("train", seconds, 1.0, joules, 0.1, "pmic", num_steps=steps, **more)  # type: ignore[arg-type]


TRAINING = Training(2, 10, 0.1, 0.9)


def turn(number: int, stage: str = "train") -> Turn:
    return Turn(number, stage, 0, TRAINING)


def update(name: str, steps: int) -> Update:
    return Update(name, 1, "run", 2, "train", 100, BlobRef("ab" * 32, 10), 0.1, steps, [], 0)


def test_random_asks_as_ever_and_weighs_as_ever():
    made = planner([0.0], per_round=1)
    trusted = joined(made, join("a"), join("b"))
    found = made.plan(turn(1), trusted, 1, 1.0)
    assert (len(found.cohort), found.resting, found.steps) == (1, {}, {})
    assert made.weigh(turn(1), update("a", 7), 100) == 100


def test_slow_boards_make_fewer_steps_from_the_second_round_on():
    made = planner([0.0], train_target_s=2.0)
    trusted = joined(made, join("fast"), join("slow"))
    assert made.plan(turn(1), trusted, 2, 1.0).steps == {}  # 2 epochs of 10 batches; nothing is known.
    made.spent("fast", 1, [trained(1.0, 5.0)])
    made.spent("slow", 1, [trained(5.0, 5.0)])
    found = made.plan(turn(2), trusted, 2, 1.0)
    assert found.steps == {"slow": 8}  # A step takes 0.25 s.
    spared, whole = (made.weigh(turn(2), update("a", steps), 100) for steps in (8, 20))
    assert whole == 1600
    # rho = 0.9: |a(20)| = 200 - 90 (1 - 0.9^20) = 120.94, |a(8)| = 80 - 90 (1 - 0.9^8) = 28.74.
    assert spared == pytest.approx(1600 * 120.94 / 28.74, rel=1e-3)
    # Nobody is asked for fewer than 5 steps: who claims them is taken at 5. Nor does anybody make more than all.
    assert made.weigh(turn(2), update("a", 1), 100) == made.weigh(turn(2), update("a", 5), 100)
    assert made.weigh(turn(2), update("a", 99), 100) == whole


def test_a_round_that_only_looks_for_a_mask_is_not_paced():
    made = planner([0.0], train_target_s=2.0)
    trusted = joined(made, join("slow"))
    made.spent("slow", 1, [trained(5.0, 5.0)])
    assert made.plan(turn(2, "score"), trusted, 1, 1.0).steps == {}
    assert made.weigh(turn(2, "score"), update("slow", 3), 1) == 1


def test_a_profile_paces_the_first_round_by_density():
    steps = (Step(1.0, 0.25, 1.0), Step(0.1, 0.05, 0.2))
    made = planner([0.0], {"rpi5": steps}, train_target_s=2.0)
    trusted = joined(made, join("slow"))
    assert made.plan(turn(1), trusted, 2, 1.0).steps == {"slow": 8}
    assert made.plan(turn(2), trusted, 2, 0.1).steps == {}


def test_whoever_rests_is_not_asked_and_everybody_resting_asks_nobody():
    now = [0.0]
    made = planner(now, choose="energy", temperature_ceiling_c=70.0, rest_s=100.0)
    trusted = joined(made, join("cool"), join("hot", temperature_c=80.0))
    found = made.plan(turn(1), trusted, 2, 1.0)
    assert (found.cohort, found.resting) == (["cool"], {"hot": "hot: 80 of 70 °C"})
    made.heard(join("cool", temperature_c=90.0))
    assert made.plan(turn(2), trusted, 2, 1.0).cohort == []
    now[0] = 50.0
    made.heard(join("cool", temperature_c=60.0))  # It says that it has cooled down.
    assert made.plan(turn(2), trusted, 2, 1.0).cohort == ["cool"]


def test_a_plan_says_if_nobody_can_ever_be_asked():
    made = planner([0.0], choose="energy", joules_per_day=10.0)
    trusted = joined(made, join("a"), join("b"))
    made.plan(turn(1), trusted, 2, 1.0)
    made.spent("a", 1, [trained(5.0, 11.0)])
    found = made.plan(turn(2), {"a": trusted["a"]}, 1, 1.0)
    assert found.is_hopeless
    assert found.resting == {"a": "over budget: 11 J spent, 11 J to come, of 10 J a day"}
    assert not made.plan(turn(2), trusted, 2, 1.0).is_hopeless
    assert not made.plan(turn(2), {}, 2, 1.0).is_hopeless


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
LIES = st.lists(
    st.builds(
        Phase,
        phase=st.sampled_from(["train", "upload", "idle"]),
        duration_s=FLOATS,
        cpu_s=st.just(0.0),
        energy_j=st.none() | FLOATS,
        uncertainty_j=st.none(),
        energy_source=st.just("pmic"),
        num_steps=st.integers(0, 2**64 - 1),
        temperature_c=st.none() | FLOATS,
        throttling=st.sampled_from(["", "throttled"]),
    ),
    max_size=4,
)


@example([trained(math.nan, 5.0)])
@example([trained(math.inf, 5.0)])
@example([trained(-1.0, 5.0)])
@example([trained(5.0, math.nan)])
@example([trained(5.0, math.inf)])
@given(LIES)
def test_whatever_a_client_reports_rounds_can_be_planned(phases):
    now = [0.0]
    made = planner(now, choose="energy", joules_per_day=1e6, temperature_ceiling_c=70.0, train_target_s=2.0)
    trusted = joined(made, join("liar"), join("honest"))
    for number in (1, 2, 3):
        found = made.plan(turn(number), trusted, 2, 1.0)
        assert "honest" in found.cohort
        assert all(5 <= steps < 20 for steps in found.steps.values())
        made.spent("liar", number, phases)
        made.spent("honest", number, [trained(5.0, 5.0)])
        now[0] += 1000.0


def test_a_resumed_run_knows_what_was_spent_and_when(tmp_path: Path):
    for name, rows in (
        (ROUNDS, [asdict(replace(round_row(n, 0.5), union_density=0.1)) for n in (1, 2)]),
        (
            DEVICES,
            [asdict(r) for n in (1, 2, 3) for r in device_rows(n, "a", [trained(5.0, 8.0)], 1, "r", "k")],
        ),
    ):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    now = [20.0]  # Round 3 was broken off.
    made = planner(now, choose="energy", joules_per_day=30.0)
    made.restore(tmp_path, trains_dense=False)
    trusted = joined(made, join("a"), join("b"))
    found = made.plan(turn(3), trusted, 2, 0.1)
    assert found.cohort == ["b"]
    assert found.resting["a"].startswith("over budget: 24 J spent, 8 J to come")
    assert made.accounts.by_client["a"].device.spends == ((20.0, 24.0),)  # Rounds of 10 s, as one.
    assert [step.density for step in made.accounts.by_client["a"].model.rounds] == [0.1, 0.1]


def sparse(now: list[float], **cohort: object) -> Planner:
    return planner(now, train_target_s=10.0, **cohort)


def test_slow_boards_give_up_weights_before_steps():
    made = sparse([0.0], least_density_share=0.25)
    trusted = joined(made, join("slow"), join("fast"))

    def plan(number: int) -> tuple[dict[str, float], dict[str, int]]:
        found = made.plan(turn(number), trusted, 2, 0.2)
        return found.shares, found.steps

    assert plan(1) == ({}, {})  # Nothing is known.
    for _ in range(2):  # Of 20 steps each.
        assert made.spent("slow", 1, [trained(24.0, 1.0)]) == 0.2
        made.spent("fast", 1, [trained(2.0, 1.0)])
    assert plan(2) == ({"slow": 0.5}, {"slow": 8})  # What half of it saves is not known yet.
    assert made.spent("slow", 2, [trained(14.0 * 8 / 20, 1.0, 8)]) == 0.1
    assert plan(3) == ({"slow": 0.25}, {})  # 4 s + 20 s for each 0.2: 9 s at a quarter.


def test_the_least_share_is_kept_and_steps_make_up_for_the_rest():
    made = sparse([0.0], least_density_share=0.5)
    trusted = joined(made, join("slow"), join("fast"))
    made.plan(turn(1), trusted, 2, 0.2)
    for seconds, share in ((24.0, 1.0), (24.0, 1.0), (14.0, 0.5)):
        made._shares["slow"] = share
        made.spent("slow", 1, [trained(seconds, 1.0)])
    found = made.plan(turn(2), trusted, 2, 0.2)
    assert found.shares == {"slow": 0.5}
    assert found.steps == {"slow": 14}


def test_a_board_that_is_fast_again_trains_more_again():
    made = sparse([0.0], least_density_share=0.25)
    trusted = joined(made, join("a"), join("b"))
    made.plan(turn(1), trusted, 2, 0.2)
    for seconds, expected in ((9.0, {"a": 0.25}), (4.0, {"a": 0.5})):
        made._shares["a"] = 0.25
        made.accounts.by_client["a"].model.rounds.clear()
        made.spent("a", 1, [trained(seconds, 1.0)])
        found = made.plan(turn(2), trusted, 2, 0.2)
        assert (found.shares, found.steps) == (expected, {})
