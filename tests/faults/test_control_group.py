"""Fault row 24: a client in a control group of 128 MB, as on a board whose service has MemoryMax."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_profiles.memory import available_bytes
from edge_client.kernels import library_path
from edge_client.memory import afford, plan
from export.export import export_model
from protocol import artifact as artifacts
from protocol.errors import OutOfMemory
from tests.conftest import Federation
from tests.device_profiles.test_memory import grouped
from tests.faults.test_federations import begin, prepared
from tools.split import split

LIMIT = 128 << 20
VERSIONS = {
    Path("/sys/fs/cgroup"): ("memory.max", "memory.events"),
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.oom_control"),
}


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """A group of its own, which only root can make, and not in every container."""
    for top, (limit, _) in VERSIONS.items():
        group = top / f"sparsefleet-test-{time.monotonic_ns()}"
        try:
            group.mkdir()
            with (group / limit).open(
                "r+"
            ) as file:  # The kernel made it; where version 1 is, the top is no group.
                file.write(str(LIMIT))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with contextlib.suppress(OSError):  # A test that failed has left a process there.
                group.rmdir()
        return
    pytest.skip("no control group can be made here")


def within(group: Path, one: Federation) -> Federation:
    """Let its clients start there: one that is moved may have begun its task before."""
    enter = f'echo $$ > "{group / "cgroup.procs"}" && exec "$0" "$@"'
    one.client_command = ["sh", "-c", enter, *one.client_command]
    return one


def num_killed(group: Path) -> int:
    """How many of its processes the kernel has killed for memory."""
    text = (group / VERSIONS[group.parent][1]).read_text()
    return int(re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)[1])


def export(folder: Path, model: str) -> Path:
    export_model(model, (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=1, how="iid", alpha=1.0, seed=0)
    return folder


@pytest.mark.slow
def test_a_client_in_a_small_group_declines_what_does_not_fit_and_serves_what_does(
    fault, mosquitto, federate, tmp_path
):
    pytest.importorskip("sklearn")
    row = fault(24)
    with control_group() as group:
        large = prepared(federate(export(tmp_path / "large", "resnet18"), 1), mosquitto, rounds=1)
        begin(within(group, large))
        large.await_event(event="task-refused", client="client-000")
        (refused,) = {event["reason"] for event in large.events() if event["event"] == "task-refused"}
        needed_mb, budget_mb = map(int, re.search(r"(\d+) MB.*budget of (\d+) MB", refused).groups())
        assert needed_mb >= 300, refused
        assert budget_mb == LIMIT // 10**6, refused
        row.trials += 1
        large.close()

        small = prepared(federate(export(tmp_path / "small", "cnn"), 1), mosquitto, rounds=3)
        begin(within(group, small))
        assert small.finish()["rounds"] == 3
        row.trials += 1
        assert num_killed(group) == 0
        small.close()


def test_a_task_beyond_the_control_groups_limit_is_declined(tmp_path):
    export_model("cnn", (1, 8, 8), 10, tmp_path / "artifact", library_path())
    manifest = artifacts.read(tmp_path / "artifact")
    available = available_bytes(grouped(tmp_path, service=str(LIMIT)))
    afford(plan(manifest, manifest.layout.size // 50, 16), available)
    with pytest.raises(OutOfMemory, match=r"budget of 134 MB"):
        afford(plan(manifest, manifest.layout.size, 4096), available)
