"""What modelled boards spend, and the columns that a lab makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from tests.tools.energy_report.runs import run as run_folder
from tools.lab.boards import Board, ModelledBoard
from tools.lab.costs import compared, costs, markdown
from tools.lab.plan import read

PLAN = """
model = "cnn"
rounds = 3
seeds = [0]
alphas = [1.0]
[data]
source = "digits"
clients = 3
[training]
local_epochs = 1
batch_size = 32
learning_rate = 0.05
[[boards]]
name = "fast"
count = 2
step_s = 0.1
step_j = 0.5
[[rows]]
method = { name = "fedavg" }
cohort = { choose = "energy" }
"""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("count = 2", "count = 2"), "the boards' counts are 2 together, data.clients is 3"),
        (('choose = "energy"', 'choose = "cheapest"'), "row 'fedavg': cohort"),
        (('choose = "energy"', "joules_per_day = 5.0"), "limits nothing"),
        (('{ choose = "energy" }', "{ train_target_s = -1.0 }"), "row 'fedavg': cohort"),
    ],
)
def test_a_plan_that_does_not_add_up_is_refused(change, text, tmp_path):
    (tmp_path / "lab.toml").write_text(PLAN.replace(*change))
    with pytest.raises(ConfigError, match=text):
        read(tmp_path / "lab.toml")


def test_a_board_pays_for_the_share_of_a_step_that_density_leaves():
    board = ModelledBoard(Board(name="slow", count=1, step_s=2.0, step_j=10.0, fixed=0.25))
    with board.meter.phase("train") as span:
        board.step(1.0)
        board.step(0.2)  # 0.25 + 0.75 * 0.2 = 0.4
        span.num_steps = 2
    (phase,) = board.meter.take()
    assert (phase.energy_j, phase.duration_s) == (pytest.approx(14.0), pytest.approx(2.8))
    assert (phase.energy_source, phase.energy_scope) == ("model:lab(slow)", "model")


def test_a_round_takes_as_long_as_its_slowest_client(tmp_path: Path):
    folder = run_folder(tmp_path / "run", [[20.0, 40.0], [30.0]], [0.5, 0.75])
    spent = costs(folder)
    # Waiting is in the rows of this folder, and costs 100 J; modelled boards wait for nothing.
    assert [(accuracy, seconds) for accuracy, _, seconds in spent["spent"]] == [(0.5, 55.0), (0.75, 110.0)]
    assert spent["asked"] == {"orin": 1, "pi": 2}


def test_rows_are_compared_at_what_all_of_them_reach():
    def cell(*points: tuple[float, float, float]) -> dict:
        return {"spent": list(points), "asked": {"a": 3, "b": 5}}

    slow = [cell((0.4, 10, 1), (0.6, 20, 2)), cell((0.5, 10, 1), (0.8, 20, 2))]  # On average 0.7.
    fast = [cell((0.9, 50, 9)), cell((0.7, 60, 8))]
    first, second = compared([slow, fast])
    assert first["target"] == second["target"] == pytest.approx(70.0)
    assert (first["reached"], first["joules_to_target"], first["seconds_to_target"]) == (1, 20, 2)
    assert (second["reached"], second["joules_to_target"]) == (2, 55)
    assert (first["least_asked"], first["most_asked"]) == (3, 5)
    shown = markdown([{"method": "slow", "alpha": 0.1, "accuracy_mean": 0.7, "accuracy_std": 0.1, **first}])
    assert shown.splitlines()[-1].startswith("| slow | 0.1 | 70.0 ± 10.0 | 20 | 2 | 70 | 1 | 20 | 2 |")
