"""Energy-aware rounds, and sensors that fail, in whole federations over Loopback."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coordinator.asynchronous import AsynchronousConfig
from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import read_csv, rests
from coordinator.service import Progress
from device_profiles import load
from edge_client import daemon
from edge_client.energy.choose import choose
from edge_client.energy.conditions import watch
from edge_client.energy.meter import Meter
from edge_client.kernels import library_path
from export.export import export_model
from protocol.errors import ConfigError
from protocol.messages import Training
from tests.edge_client.energy import trees
from tools.lab.boards import Board, ModelledBoard
from tools.simulate import simulate
from tools.split import split

NAMES = [f"client-{n:03}" for n in range(4)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("energy")
    export_model("cnn", (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=len(NAMES), how="iid", alpha=1.0, seed=0)
    return folder


def experiment(home: Path, rounds: int, **cohort: object) -> Experiment:
    return Experiment(
        artifact=str(home / "artifact"),
        data=str(home / "data"),
        rounds=rounds,
        method={"name": "fedavg"},
        training=Training(1, 16, 0.05),
        cohort=CohortConfig(clients=len(NAMES), deadline_s=60, join_timeout_s=30, **cohort),  # type: ignore[arg-type]
    )


def run(
    home: Path, out: Path, made: Experiment, boards: dict[str, Any], show: Any = lambda progress: None
) -> list[dict]:
    """Run it; return what the rounds were opened with."""
    simulate(made, {name: home / "data" / f"{name}.npz" for name in NAMES}, out, show=show, boards=boards)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "round-opened"]


def fast_and_slow() -> dict[str, ModelledBoard]:
    fast = Board(name="fast", count=2, step_s=0.01, step_j=0.1)
    slow = Board(name="slow", count=2, step_s=0.2, step_j=1.0)
    return {name: ModelledBoard(fast if n < 2 else slow) for n, name in enumerate(NAMES)}


def test_unequal_boards_finish_together_and_cheap_ones_are_asked_more(home, tmp_path):
    made = experiment(home, 12, per_round=2, choose="energy", train_target_s=2.0)
    opened = run(home, tmp_path / "run", made, fast_and_slow())
    times = Counter(name for event in opened for name in event["cohort"])
    assert min(times["client-000"], times["client-001"]) > max(times["client-002"], times["client-003"]) >= 2
    rows = [row for row in read_csv(tmp_path / "run" / "devices.csv") if row["phase"] == "train"]
    shortened = {
        (event["round"], name): steps for event in opened for name, steps in event.get("steps", {}).items()
    }
    assert shortened
    for row in rows:
        asked = shortened.get((int(row["round_number"]), row["client_id"]))
        if asked is not None:  # 10 steps of 0.2 s.
            assert int(row["num_steps"]) == asked == 10
            assert float(row["duration_s"]) == pytest.approx(2.0)
            assert row["client_id"] in ("client-002", "client-003")
    assert float(read_csv(tmp_path / "run" / "rounds.csv")[-1]["accuracy"]) > 0.9


@pytest.mark.slow
def test_slow_boards_train_fewer_weights_before_they_make_fewer_steps(home, tmp_path):
    """A step of a slow board takes 0.072 s at density 0.2, and 0.056 s at half of it: 23 of these fit."""
    made = experiment(home, 10, train_target_s=1.4, least_density_share=0.25)
    made.method = {"name": "fedpai", "density": 0.2}
    opened = run(home, tmp_path / "run", made, fast_and_slow())
    assert opened[1].get("shares") is None  # Unknown: the first round tells.
    assert all(event["shares"] == {"client-002": 0.5, "client-003": 0.5} for event in opened[2:])
    assert opened[2]["steps"] == {"client-002": 19, "client-003": 19}  # What it saves, this round tells.
    assert not any("steps" in event for event in opened[3:])
    rows = [row for row in read_csv(tmp_path / "run" / "devices.csv") if row["phase"] == "train"]
    late = [row for row in rows if int(row["round_number"]) >= 2]
    for row in late:
        is_slow = row["client_id"] in ("client-002", "client-003")
        assert float(row["density"]) == pytest.approx(0.1 if is_slow else 0.2, rel=0.01)
        assert float(row["duration_s"]) <= 1.4
    received = Counter[str]()
    for row in read_csv(tmp_path / "run" / "devices.csv"):
        received[row["client_id"]] += int(row["sent_bytes"]) if row["phase"] == "upload" else 0
    assert received["client-003"] < 0.8 * received["client-000"]
    rounds = read_csv(tmp_path / "run" / "rounds.csv")
    assert float(rounds[-1]["accuracy"]) > 0.9
    assert {row["rejected"] for row in rounds} == {"0"}


@pytest.mark.slow
def test_the_same_federation_twice_chooses_the_same(home, tmp_path):
    made = experiment(home, 5, per_round=2, choose="energy", train_target_s=2.0)
    first, second = (run(home, tmp_path / name, made, fast_and_slow()) for name in ("a", "b"))
    assert [(one["cohort"], one.get("steps")) for one in first] == [
        (one["cohort"], one.get("steps")) for one in second
    ]
    assert (tmp_path / "a" / "rounds.csv").exists()


def test_a_board_over_its_budget_rests_and_the_report_says_why(home, tmp_path):
    made = experiment(home, 4, choose="energy", joules_per_day=50.0)  # Slow boards: 23 steps of 1 J a round.
    opened = run(home, tmp_path / "run", made, fast_and_slow())
    assert [len(event["cohort"]) for event in opened] == [4, 4, 2, 2]
    assert opened[2]["resting"]["client-003"].startswith("over budget: ")
    assert [row["resting"] for row in read_csv(tmp_path / "run" / "rounds.csv")] == ["0", "0", "2", "2"]
    assert rests(tmp_path / "run") == {name: {"over budget": 2} for name in ("client-002", "client-003")}
    spent = Counter[str]()
    for row in read_csv(tmp_path / "run" / "devices.csv"):
        spent[row["client_id"]] += float(row["energy_j"])
    assert max(spent.values()) <= 50.0


@pytest.mark.slow
def test_in_asynchronous_rounds_budgets_are_kept_too(home, tmp_path):
    made = experiment(home, 8, choose="energy", joules_per_day=50.0)
    made.asynchronous = AsynchronousConfig(buffer=2, max_staleness=8)
    opened = run(home, tmp_path / "run", made, fast_and_slow())
    assert len(opened) == 8
    spent = Counter[str]()
    for row in read_csv(tmp_path / "run" / "devices.csv"):
        spent[row["client_id"]] += float(row["energy_j"])
    assert max(spent.values()) <= 50.0
    assert {"client-002", "client-003"} <= set(opened[-1]["resting"])
    assert opened[-1]["resting"]["client-003"].startswith("over budget: ")
    assert float(read_csv(tmp_path / "run" / "rounds.csv")[-1]["accuracy"]) > 0.9


@pytest.mark.slow  # Its clients go on waiting for as long as the process lives.
def test_a_run_that_nobody_can_ever_go_on_with_ends_with_the_reasons(home, tmp_path):
    made = experiment(home, 3, choose="energy", joules_per_day=5.0)
    boards = {name: ModelledBoard(Board(name="dear", count=1, step_s=0.1, step_j=1.0)) for name in NAMES}
    with pytest.raises(ConfigError, match="no device can ever be asked: client-000: over budget: 23 J spent"):
        run(home, tmp_path / "run", made, boards)


class Warm:
    """A board with a thermal zone, whose steps cost nothing much."""

    def __init__(self, root: Path) -> None:
        self.temperature = root / "sys/class/thermal/thermal_zone0/temp"
        trees.write(
            root, {"sys/class/thermal/thermal_zone0/type": "cpu-thermal", str(self.temperature): 85_000}
        )
        self.modelled = ModelledBoard(Board(name="warm", count=1, step_s=0.01, step_j=0.1))
        self.meter = Meter(self.modelled, conditions=watch(root))

    def backend(self, inner: Any) -> Any:
        return self.modelled.backend(inner)

    def cool(self) -> None:
        self.temperature.write_text("50000\n")


def test_hot_boards_rest_until_they_say_that_they_have_cooled_down(home, tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "ANNOUNCE_S", 0.05)
    boards = {name: Warm(tmp_path / name) for name in NAMES}

    written = tmp_path / "run" / "events.jsonl"

    def show(progress: Progress) -> None:
        if progress.row is not None and progress.round_number == 1:
            boards["client-003"].cool()
            time.sleep(1.0)  # It says so within that time.

    def cool() -> None:
        while not (written.is_file() and "all-resting" in written.read_text()):
            time.sleep(0.05)
        for name in NAMES[:3]:
            boards[name].cool()

    cooling = threading.Thread(target=cool, daemon=True)
    cooling.start()
    made = experiment(home, 6, choose="energy", temperature_ceiling_c=70.0, rest_s=3600.0)
    opened = run(home, tmp_path / "run", made, boards, show)
    cooling.join(10)
    assert opened[0]["cohort"]  # All rested at first; the run waited for one to be well.
    assert opened[0]["resting"]["client-003"] == "hot: 85 of 70 °C"
    assert opened[-1]["cohort"] == NAMES
    events = [json.loads(line) for line in written.read_text().splitlines()]
    waited = [event for event in events if event["event"] == "all-resting"]
    assert [sorted(event["resting"]) for event in waited] == [NAMES]


class Throttled(Warm):
    """A Raspberry Pi whose firmware says that it is slowed."""

    def __init__(self, root: Path) -> None:
        self.word = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
        trees.write(root, {str(self.word): "0"})
        super().__init__(root)

    def slow(self, is_so: bool) -> None:
        self.word.write_text(
            "50005\n" if is_so else "50000\n"
        )  # Under-voltage and throttled; sticky bits stay.


@pytest.mark.slow
def test_a_slowed_board_is_left_alone_within_two_seconds(fault, home, tmp_path):
    row = fault(23)
    boards = {name: Throttled(tmp_path / name) for name in NAMES}
    for board in boards.values():
        board.cool()
    slowed = {1: ("client-001", True), 3: ("client-001", False), 4: ("client-002", True)}

    def show(progress: Progress) -> None:
        if progress.row is not None and progress.round_number in slowed:
            name, is_so = slowed[progress.round_number]
            boards[name].slow(is_so)
            time.sleep(2.0)  # Nobody is asked meanwhile: it is said by a board that waits.
            row.trials += 1

    opened = run(home, tmp_path / "run", experiment(home, 5, choose="energy", rest_s=3600.0), boards, show)
    resting = [sorted(event.get("resting", ())) for event in opened]
    assert resting == [[], ["client-001"], ["client-001"], [], ["client-002"]]
    assert opened[1]["resting"]["client-001"] == "slowed: throttled,under-voltage"
    assert [
        name in event["cohort"] for event, names in zip(opened, resting, strict=True) for name in names
    ] == [False] * 3


class Unplugged:
    """A board whose monitor is read through real files of a recorded tree."""

    def __init__(self, root: Path) -> None:
        trees.orin_nano(root)
        self.root = root
        self.meter = Meter(choose("ina3221", load("jetson-orin-nano"), root))
        self.meter.measure_idle = lambda *_: None  # type: ignore[method-assign, assignment]  # Ten seconds.

    def backend(self, inner: Any) -> Any:
        return inner

    def garble(self) -> None:
        for path in self.root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr1_input"):
            path.write_text("\x00\xffgarbage\n")

    def unplug(self) -> None:
        """On sysfs a file that is open fails from then on; here it is emptied before it goes."""
        folder = self.root / "sys/bus/i2c/drivers/ina3221"
        for path in folder.rglob("curr1_input"):
            path.write_bytes(b"")
        shutil.rmtree(folder)


def test_sensors_that_are_unplugged_or_talk_rubbish_do_not_stop_training(home, tmp_path):
    boards = {name: Unplugged(tmp_path / name) for name in NAMES}

    def show(progress: Progress) -> None:
        if progress.row is not None and progress.round_number == 1:
            boards["client-001"].unplug()
            boards["client-002"].garble()

    out = tmp_path / "run"
    run(home, out, experiment(home, 3), boards, show)
    rounds = read_csv(out / "rounds.csv")
    assert [row["updates"] for row in rounds] == ["4", "4", "4"]
    assert float(rounds[-1]["accuracy"]) > 0.5
    figures = {
        (int(row["round_number"]), row["client_id"]): row["energy_j"]
        for row in read_csv(out / "devices.csv")
        if row["phase"] == "train"
    }
    assert all(figures[number, name] for number in (1, 3) for name in ("client-000", "client-003"))
    assert all(figures[1, name] for name in NAMES)
    for name in ("client-001", "client-002"):
        assert figures[3, name] == ""  # Unknown, never zero.
    assert rounds[2]["energy_j"] == ""
