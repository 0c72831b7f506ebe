"""The peak memory has one unit, whatever the system reports."""

from pathlib import Path

import pytest

from device_profiles.memory import available_bytes, peak_rss_bytes

resource = pytest.importorskip("resource", reason="this system has no resource module")


def test_linux_reports_vmhwm_in_kib(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(
        "Name:\tx\nVmPeak:\t 9000 kB\nVmHWM:\t  5128 kB\nVmRSS:\t 4000 kB\n"
    )
    assert peak_rss_bytes(tmp_path) == 5128 * 1024


@pytest.mark.parametrize(("system", "factor"), [("Linux", 1024), ("Darwin", 1)])
def test_without_vmhwm_the_unit_of_ru_maxrss_depends_on_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, factor: int
) -> None:
    usage = type("Usage", (), {"ru_maxrss": 7000})
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert peak_rss_bytes(tmp_path, system) == 7000 * factor


def test_this_process_needs_megabytes_and_not_terabytes() -> None:
    assert 2**20 < peak_rss_bytes() < 2**40


def grouped(root: Path, **limits: str) -> Path:
    """A tree in which this process runs in system.slice/sparsefleet.service."""
    group = root / "sys/fs/cgroup/system.slice/sparsefleet.service"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/system.slice/sparsefleet.service\n")
    for name, text in limits.items():
        folder = {"service": group, "slice": group.parent}[name]
        (folder / "memory.max").write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"service": "134217728"}, 128 << 20),
        ({"service": "max", "slice": "134217728"}, 128 << 20),
        ({"service": "268435456", "slice": "134217728"}, 128 << 20),
    ],
)
def test_a_control_groups_limit_is_what_is_available(tmp_path: Path, limits, expected) -> None:
    assert available_bytes(grouped(tmp_path, **limits)) == expected


def test_a_limit_of_control_groups_version_1_counts_too(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/memory/system.slice/sparsefleet.service"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(
        "4:cpu,memory:/system.slice/sparsefleet.service\n1:name=systemd:/x\n0::/\n"
    )
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (group.parent / "memory.limit_in_bytes").write_text("134217728\n")
    assert available_bytes(tmp_path) == 128 << 20


def test_without_a_limit_the_machine_is_what_there_is(tmp_path: Path) -> None:
    assert available_bytes(grouped(tmp_path / "a", service="max")) > 64 << 20
    assert available_bytes(tmp_path / "b") > 64 << 20
