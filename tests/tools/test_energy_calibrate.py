"""The ladder of loads, against a meter that this board reads and against another machine's file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_client.energy.meter import Meter
from edge_client.energy.source import About, Accuracy, Reading, Scope
from protocol.errors import ConfigError
from tools.cli import main
from tools.energy_calibrate import calibrate, climb, lines, read_ladder, save


class Machine:
    """Draws 2 W and 1 W for each busy core; the wall sees 25 % and half a watt more."""

    busy = 0
    now_s = 0.0

    def sensor(self, name: str, scope: Scope, gain: float, offset_w: float) -> Meter:
        machine = self

        class Sensor:
            about = About(name, "power", scope, "", "", Accuracy(0.02), sample_s=None)

            def read(self) -> Reading:
                return Reading(gain * (2.0 + machine.busy) + offset_w)

        return Meter(Sensor(), lambda: self.now_s, lambda: 0.0)

    def sleep(self, duration_s: float) -> None:
        self.now_s += min(duration_s, 1.5)  # What is not sampled in between must not be a gap.

    @contextmanager
    def load(self, threads: int) -> Iterator[None]:
        self.busy = threads
        yield
        self.busy = 0


def test_a_meter_that_the_board_reads(tmp_path: Path) -> None:
    machine = Machine()
    meters = machine.sensor("x", "rails_sum", 1.0, 0.0), machine.sensor("meter", "wall", 1.25, 0.5)
    ladder = climb(*meters, 60.0, 4, machine.sleep, machine.load)
    assert [load.source_w for load in ladder.loads] == pytest.approx([2.0, 3.0, 4.0, 5.0, 6.0])
    found = calibrate(ladder, None)
    assert (found.source, found.scope) == ("x", "wall")
    assert (found.gain, found.offset_w) == (pytest.approx(1.25), pytest.approx(0.5))
    assert "gain = 1.25\noffset_w = 0.5\n" in lines(found)


def test_another_machines_file_is_joined_by_time_away_from_the_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    unix_s = iter(range(1000, 2000, 50))
    monkeypatch.setattr("tools.energy_calibrate.time.time", lambda: float(next(unix_s)))
    ladder = climb(machine.sensor("x", "rails_sum", 1.0, 0.0), None, 50.0, 3, machine.sleep, machine.load)
    save(tmp_path / "ladder.json", ladder)
    assert read_ladder(tmp_path / "ladder.json") == ladder
    with pytest.raises(ConfigError, match="has no reference"):
        calibrate(ladder, None)
    rows = ["unix_s,watts"]
    for load in ladder.loads:
        for at_s in range(int(load.begin_unix_s), int(load.end_unix_s) + 1):
            is_edge = min(at_s - load.begin_unix_s, load.end_unix_s - at_s) < 4
            rows.append(f"{at_s},{99 if is_edge else 1.25 * load.source_w + 0.5}")
    (tmp_path / "meter.csv").write_text("\n".join(rows))
    options = ["--ladder", str(tmp_path / "ladder.json"), "--csv", str(tmp_path / "meter.csv"), "--json"]
    assert main(["energy", "calibrate", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gain"], found["offset_w"]) == (pytest.approx(1.25), pytest.approx(0.5))
    (tmp_path / "meter.csv").write_text("unix_s,watts\n5,1\n")
    assert main(["energy", "calibrate", *options]) == 2
    assert "has nothing between 1000 and 1050" in capsys.readouterr().err
    (tmp_path / "meter.csv").write_text("time;power\n1;2\n")
    assert main(["energy", "calibrate", *options]) == 2
    assert "columns unix_s and watts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --reference"),
        (["--reference", "i2c", "--ladder", "x"], "give --reference"),
        (["--csv", "x"], "--csv needs --ladder"),
        (["--reference", "plug"], r"give [meter.plug]"),
        (["--csv", "x", "--ladder", "absent"], "is no ladder"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["energy", "calibrate", *options]) == 2
    assert said in capsys.readouterr().err
