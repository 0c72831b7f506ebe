"""RAPL on a fixture tree: wraps, resets, gaps, permissions, and the share of one process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_client.energy.cpu_time import machine_busy_s, process_tree_s
from edge_client.energy.rapl import Attribution, RaplSource, find
from edge_client.energy.source import Reading, Unavailable

INTEL_RANGE_UJ = 262143328850


class Machine:
    """A powercap tree, a clock and CPU times, all set by the test."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s, self.process_s, self.busy_s = root, 0.0, 0.0, 0.0

    def zone(self, folder: str, name: str, energy_uj: int, range_uj: int | None = INTEL_RANGE_UJ) -> None:
        zone = self.root / "sys/class/powercap" / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(name + "\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        if range_uj is not None:
            (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")

    def counter(self, energy_uj: int | str, folder: str = "intel-rapl:0") -> None:
        (self.root / "sys/class/powercap" / folder / "energy_uj").write_text(f"{energy_uj}\n")

    def source(self, attribution: Attribution = "package") -> RaplSource:
        source = find(self.root, attribution, lambda: self.now_s, lambda: self.process_s, lambda: self.busy_s)
        assert isinstance(source, RaplSource), source
        return source


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_counter_is_read_as_joules_since_the_start(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 5_000_000)
    source = machine.source()
    machine.now_s = 1.0
    machine.counter(7_500_000)
    assert source.read() == Reading(2.5, 0)
    assert (source.about.name, source.about.scope, source.about.unit) == (
        "rapl:package-0",
        "soc_package",
        "J",
    )


def test_only_packages_count_and_their_numbers_do_not_matter(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "psys", 0)
    machine.zone("intel-rapl:1", "package-1", 0)
    machine.zone("intel-rapl:2", "package-0", 0)
    machine.zone("intel-rapl:2:0", "core", 0)
    machine.zone("intel-rapl-mmio:0", "package-0", 0)
    source = machine.source()
    for folder, energy_uj in {
        "intel-rapl:0": 1,
        "intel-rapl:1": 20,
        "intel-rapl:2": 300,
        "intel-rapl:2:0": 4000,
        "intel-rapl-mmio:0": 50000,
    }.items():
        machine.counter(energy_uj * 1_000_000, folder)
    # 20 + 300
    assert source.read() == Reading(320.0, 0)
    assert source.about.name == "rapl:package-1+package-0"


def test_a_wrap_continues_the_count(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 262143300000)
    source = machine.source()
    machine.now_s = 1.0
    machine.counter(1_000_000)
    reading = source.read()
    assert reading.gaps == 0
    # 262143328850 - 262143300000 + 1000000 = 1028850 uJ
    assert reading.value == pytest.approx(1.02885)
    assert reading.gaps == 0


def test_a_reset_is_a_gap_and_not_a_wrap(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 1_000_000_000)
    source = machine.source()
    machine.now_s = 1.0
    machine.counter(500_000)  # As a wrap it would be 261144 J in one second.
    assert source.read() == Reading(0.0, 1)
    machine.now_s = 2.0
    machine.counter(3_500_000)
    assert source.read() == Reading(3.0, 1)


def test_a_wrap_with_an_unreadable_range_is_a_gap(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 9_000_000, range_uj=None)
    source = machine.source()
    machine.now_s = 1.0
    machine.counter(1_000_000)
    assert source.read() == Reading(0.0, 1)


def test_a_pause_in_which_the_counter_may_have_wrapped_twice_is_a_gap(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0, range_uj=65532610987)
    source = machine.source()
    machine.now_s = 65.0  # 66 s at 1000 W are more than the 65533 J of the range.
    machine.counter(1_000_000)
    assert source.read() == Reading(0.0, 1)


@pytest.mark.parametrize("content", ["", "ten"])
def test_a_failed_read_is_a_gap_and_never_a_zero(machine: Machine, content: str) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    source = machine.source()
    machine.counter(content)
    with pytest.raises(ValueError):
        source.read()
    machine.now_s = 1.0
    machine.counter(4_000_000)
    # The counter itself went on, so the sum is right again; the gap tells the phase.
    assert source.read() == Reading(4.0, 1)


def test_a_vanished_counter_is_a_gap(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    source = machine.source()
    (machine.root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(FileNotFoundError):
        source.read()


def test_one_failing_package_of_two_fails_the_reading(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    machine.zone("intel-rapl:1", "package-1", 0)
    source = machine.source()
    machine.counter("", "intel-rapl:1")
    with pytest.raises(ValueError):
        source.read()


def test_the_share_of_the_process_multiplies_each_interval(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    source = machine.source("process")
    machine.now_s, machine.process_s, machine.busy_s = 1.0, 1.0, 4.0
    machine.counter(40_000_000)
    assert source.read() == Reading(10.0, 0)  # 40 J * 1 / 4
    machine.now_s, machine.process_s, machine.busy_s = 2.0, 3.0, 6.0
    machine.counter(50_000_000)
    assert source.read() == Reading(20.0, 0)  # 10 + 10 J * 2 / 2
    assert source.about.name == "rapl:package-0*cpu-share"
    assert source.about.accuracy.relative == 0.3


def test_an_idle_process_gets_nothing_and_a_share_never_exceeds_one(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    source = machine.source("process")
    machine.now_s, machine.busy_s = 1.0, 4.0
    machine.counter(40_000_000)
    assert source.read() == Reading(0.0, 0)
    machine.now_s, machine.process_s = 2.0, 0.5  # The machine's coarser ticks have not moved yet.
    machine.counter(41_000_000)
    assert source.read() == Reading(1.0, 0)


def test_an_unreadable_share_is_a_gap(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    source = find(machine.root, "process", lambda: 0.0, lambda: 0.0, lambda: None)
    assert isinstance(source, RaplSource)
    with pytest.raises(ValueError, match="busy time"):
        source.read()


def test_without_zones_the_reason_is_named(tmp_path: Path) -> None:
    absent = find(tmp_path)
    assert isinstance(absent, Unavailable)
    assert absent.reason == f"no intel-rapl zone under {tmp_path}/sys/class/powercap"
    assert 'use energy = "model"' in absent.cure


def test_a_tree_with_psys_alone_has_no_package(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "psys", 0)
    absent = find(machine.root)
    assert isinstance(absent, Unavailable)
    assert absent.reason.startswith("no processor package")


def test_a_forbidden_counter_is_unavailable_with_the_cure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    read_text: Callable[..., str] = Path.read_text

    def forbidden(path: Path, *args: str, **kwargs: str) -> str:
        if path.name == "energy_uj":  # Mode 0400 would not stop root, and tests may run as root.
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", forbidden)
    absent = find(machine.root)
    assert isinstance(absent, Unavailable)
    assert absent.reason.startswith("no permission to read ")
    assert "chmod a+r" in absent.cure


def test_a_damaged_zone_is_unavailable(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    machine.counter("?")
    assert isinstance(find(machine.root), Unavailable)


def test_the_busy_time_leaves_out_idle_waiting_and_other_guests(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    stat.write_text("cpu  100 20 30 5000 600 7 8 90 40 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert machine_busy_s(tmp_path) == pytest.approx(1.65)  # (100 + 20 + 30 + 7 + 8) / 100
    stat.write_text("cpu  100 20\n")
    assert machine_busy_s(tmp_path) is None
    stat.unlink()
    assert machine_busy_s(tmp_path) is None


def test_the_process_tree_has_used_some_time() -> None:
    assert process_tree_s() > 0
