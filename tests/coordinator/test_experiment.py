from __future__ import annotations

import pytest

from coordinator.experiment import CohortConfig, Experiment, ScheduleConfig, WireConfig
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
