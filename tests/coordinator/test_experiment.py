from __future__ import annotations

import pytest

from coordinator.asynchronous import AsynchronousConfig
from coordinator.experiment import CohortConfig, Experiment, ScheduleConfig, WireConfig
from coordinator.robust import AggregationConfig
from protocol.errors import ConfigError
from protocol.messages import Training


def experiment(**changes: object) -> Experiment:
    made = Experiment(
        artifact="a",
        data="d",
        rounds=700,
        method={"name": "fedavg"},
        training=Training(1, 16, 0.5),
        cohort=CohortConfig(clients=1),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_the_learning_rate_falls_by_the_same_factor_each_round():
    """0.5 -> 0.01 over 700 rounds: 0.5 after none, 0.070711 after 350, 0.01 after all."""
    made = experiment(schedule=ScheduleConfig(0.01))
    rates = [made.training_in(done + 1).learning_rate for done in (0, 350, 700)]
    assert rates == pytest.approx([0.5, 0.070711, 0.01], rel=1e-5)
    assert made.training_in(0).learning_rate == 0.5  # A round of preparation.
    assert experiment().training_in(600) == made.training


def test_a_method_refuses_settings_it_cannot_work_with_before_the_run():
    made = experiment(method={"name": "proxskip"}, wire=WireConfig(download_values="f16"))
    with pytest.raises(ConfigError, match="download_values = 'f32'"):
        made.build_method()


@pytest.mark.parametrize(
    ("cohort", "method", "text"),
    [
        ({"joules_per_day": 5.0}, {"name": "fedavg"}, "cohort.joules_per_day limits nothing"),
        ({"battery_floor_percent": 5.0}, {"name": "fedavg"}, "cohort.battery_floor_percent limits nothing"),
        ({"profiles": ["a.json"]}, {"name": "fedavg"}, "cohort.profiles serve"),
        (
            {"train_target_s": 5.0},
            {"name": "proxskip", "density": 0.1},
            "method 'proxskip' .* cannot average",
        ),
        ({"train_target_s": 5.0}, {"name": "scaffold"}, "method 'scaffold'"),
        ({"least_density_share": 0.5}, {"name": "fedpai", "density": 0.1}, "without cohort.train_target_s"),
        ({"train_target_s": 5.0, "least_density_share": 0.5}, {"name": "fedavg"}, "method 'fedavg'"),
        ({"train_target_s": 5.0}, {"name": "fedpai", "density": 0.1, "masks": "personal"}, "method 'fedpai'"),
    ],
)
def test_settings_that_do_nothing_or_do_wrong_are_refused(cohort, method, text):
    made = experiment(cohort=CohortConfig(clients=1, **cohort), method=method, training=Training(1, 16, 0.1))
    with pytest.raises(ConfigError, match=text):
        made.build_method()


@pytest.mark.parametrize(
    "method", [{"name": "fedavg"}, {"name": "fedpai", "density": 0.1}, {"name": "sparsyfed", "density": 0.1}]
)
def test_methods_that_average_by_examples_take_unequal_steps(method):
    experiment(cohort=CohortConfig(clients=1, train_target_s=5.0), method=method).build_method()


def test_robust_rules_weigh_nobody_so_steps_stay_equal():
    made = experiment(
        cohort=CohortConfig(clients=1, train_target_s=5.0), aggregation=AggregationConfig(rule="median")
    )
    with pytest.raises(ConfigError, match=r"aggregation.rule = 'median' weighs none"):
        made.build_method()


def test_asynchronous_boards_need_not_finish_together():
    made = experiment(
        cohort=CohortConfig(clients=1, train_target_s=5.0), asynchronous=AsynchronousConfig(buffer=2)
    )
    with pytest.raises(ConfigError, match=r"asynchronous.buffer makes unnecessary"):
        made.build_method()
