"""The client as a service: installed into a file tree from real wheels, updated under a supervisor, returned.

The supervisor (supervisor.py) does what systemd does with the unit file; systemd itself is not started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.config import dumps
from tests.conftest import USERS
from tests.tools.supervisor import Supervisor
from tools import wheelhouse, wheels
from tools.cli import main
from tools.device import environment
from tools.device.environment import InstallFailed
from tools.device.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
IS_LINUX = sys.platform == "linux"
pytestmark = pytest.mark.skipif(not IS_LINUX, reason="a service of Linux")


def repacked(wheel: Path, folder: Path, version: str, changes: dict[str, Callable[[str], str]]) -> Path:
    """Another version of our wheel, with some files changed."""
    old = wheel.name.split("-")[1]
    made = folder / wheel.name.replace(f"-{old}-", f"-{version}-")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename in changes:
                changed = changes[entry.filename](data.decode()).encode()
                assert changed != data, f"{entry.filename} no longer has what was to be changed"
                data = changed
            if entry.filename.endswith("/METADATA"):
                data = data.replace(f"Version: {old}".encode(), f"Version: {version}".encode(), 1)
            if entry.filename.endswith("/RECORD"):
                data = data.replace(f"sparsefleet-{old}.".encode(), f"sparsefleet-{version}.".encode())
            name = entry.filename.replace(f"sparsefleet-{old}.", f"sparsefleet-{version}.")
            target.writestr(name, data)
    return made


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """The wheels of this machine, as a board's wheelhouse holds its own."""
    folder = tmp_path_factory.mktemp("wheels")
    target = wheelhouse.Target.here()
    made = wheels.build(ROOT, tmp_path_factory.mktemp("dist"), target.machine)
    wheelhouse.download(str(made), folder, target)
    return folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """The part of a root file system that an installation touches."""
    return bare(tmp_path / "root")


def bare(root: Path) -> Path:
    """Make it."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\ni2c:x:998:\n")
    (root / "etc/shadow").touch(0o600)
    (root / "etc/gshadow").touch(0o600)
    (root / "etc/login.defs").touch()
    return root


def ours(folder: Path) -> Path:
    (wheel,) = folder.glob("sparsefleet-*.whl")
    return wheel


def test_without_wheels_or_configuration_nothing_is_begun(tree, tmp_path, capsys):
    for arguments, words in (
        ([], "give --wheels DIR"),
        (["--wheels", str(tmp_path)], "no wheels in"),
        (["--wheel", "x.whl", "--dry-run"], "give --config FILE, or --broker URL"),
        (
            ["--wheel", "x.whl", "--broker", "mqtt://x", "--data", str(tmp_path / "n.npz")],
            "n.npz is not there",
        ),
    ):
        assert main(["device", "install", "--root", str(tree), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (tree / "opt").exists()


def test_a_dry_run_lists_every_step_and_takes_none(tree, capsys):
    command = ["device", "install", "--root", str(tree), "--wheel", "x.whl", "--broker", "mqtt://x"]
    assert main([*command, "--cpu-quota", "200", "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["is_dry_run"]
    text = "\n".join(listed["steps"])
    for part in (
        "opt/sparsefleet/a",
        "guard",
        "client.toml",
        "mode 0640",
        "sparsefleet.service.d/cpu.conf",
        "enable",
    ):
        assert part in text
    assert sorted(path.name for path in tree.iterdir()) == ["etc"]


@pytest.mark.parametrize(
    ("python", "machine", "words"),
    [((3, 8), "aarch64", "uv python install"), ((3, 11), "armv7l", "64-bit image"), ((3, 11), "aarch64", "")],
)
def test_systems_without_wheels_are_refused_with_the_way_out(python, machine, words):
    if not words:
        environment.check_machine(python, machine)
        return
    with pytest.raises(InstallFailed, match=words):
        environment.check_machine(python, machine)


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_disk_that_takes_nothing_is_a_reason_not_a_traceback(is_copy, tmp_path):
    wheels = [tmp_path / name for name in ("pip-1-py3-none-any.whl", "sparsefleet-1-py3-none-any.whl")]
    (tmp_path / "full").touch()  # A file where the folder should be: also root cannot write there.
    (tmp_path / "base").mkdir()
    with pytest.raises(InstallFailed, match="cannot be made"):
        environment.make(tmp_path / "full" / "a", wheels, tmp_path / "base" if is_copy else None)


def install(tree: Path, house: Path, broker: str, data: Path, *more: str) -> int:
    command = ["device", "install", "--root", str(tree), "--wheels", str(house), "--broker", broker]
    return main([*command, "--client-id", "pi-07", "--data", str(data), *more])


@pytest.fixture
def data(tmp_path) -> Path:
    np.savez(tmp_path / "examples.npz", x=np.zeros((5, 1, 8, 8), np.float32), y=np.zeros(5, np.int64))
    return tmp_path / "examples.npz"


@pytest.mark.slow
@pytest.mark.alone
def test_a_tree_gets_everything_with_the_right_modes_and_gives_it_back(
    tree, house, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SPARSEFLEET_PASSWORD", "secret-1")
    for _ in range(2):  # Twice is as good as once.
        assert install(tree, house, "mqtts://laptop.local:8883", data) == 0
    layout = Layout(tree)
    modes = {
        "etc/sparsefleet": 0o750,
        "etc/sparsefleet/client.toml": 0o640,
        "var/lib/sparsefleet": 0o700,
        "var/lib/sparsefleet/data.npz": 0o600,
        "opt/sparsefleet/guard": 0o755,
        "usr/local/bin/sparsefleet": 0o755,
    }
    for path, mode in modes.items():
        assert stat.S_IMODE((tree / path).stat().st_mode) == mode, path
    assert "secret-1" in layout.config.read_text()
    assert str(layout.wanted.readlink()) == "/etc/systemd/system/sparsefleet.service"
    if os.geteuid() == 0:
        (user,) = [
            line.split(":")
            for line in (tree / "etc/passwd").read_text().splitlines()
            if "sparsefleet" in line
        ]
        assert (tree / "var/lib/sparsefleet/data.npz").stat().st_uid == int(user[2])
        assert layout.config.stat().st_gid == int(user[3])
        assert "video:x:44:sparsefleet" in (tree / "etc/group").read_text()
    # The unit, with the paths of the tree, as systemd reads it.
    unit = tmp_path / "sparsefleet.service"
    text = layout.unit.read_text().replace("=sparsefleet", "=root", 2).replace("/opt/", f"{tree}/opt/")
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unknown = [line for line in done.stderr.splitlines() if unit.name in line and "RestartSteps" not in line]
    assert [line for line in unknown if "RestartMaxDelaySec" not in line] == []
    # The commands of a board, in what a board has: no extra but `device`.
    for command in (["energy", "sources"], ["doctor", "--json"], ["device", "--help"], ["card", "--help"]):
        words = [layout.python("a"), "-I", "-m", "tools.cli", *command]
        done = subprocess.run(words, cwd="/", capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout
    capsys.readouterr()
    assert main(["device", "status", "--root", str(tree), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["environment"] == "a"
    assert status["versions"] == {"a": ours(house).name.split("-")[1]}
    assert main(["device", "uninstall", "--root", str(tree)]) == 0
    assert not layout.home.exists()
    assert layout.config.exists()  # What cannot be had again stays.
    assert (layout.data / "data.npz").exists()
    assert main(["device", "uninstall", "--root", str(tree), "--purge"]) == 0
    assert not layout.settings.exists()
    assert not layout.data.exists()
    assert "sparsefleet" not in (tree / "etc/passwd").read_text() or os.geteuid() != 0


@pytest.mark.slow
@pytest.mark.alone
def test_it_installs_from_its_wheel_with_the_standard_library_alone(tree, house, data):
    """The one line of docs/device.md, by a Python that has nothing."""
    command = [
        sys.executable,
        "-S",
        "-m",
        "tools.device",
        "install",
        "--root",
        str(tree),
        "--wheels",
        str(house),
    ]
    command += ["--broker", "mqtts://laptop.local:8883", "--client-id", "pi-07", "--data", str(data)]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ours(house))}
    done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Layout(tree).current == "a"


@pytest.mark.slow
@pytest.mark.alone
def test_a_configuration_that_the_client_would_refuse_is_refused_now(tree, house, tmp_path, capsys):
    (tmp_path / "client.toml").write_text('client_id = "pi"\ndata = "x.npz"\n[broker]\nurrl = "mqtt://x"\n')
    command = ["device", "install", "--root", str(tree), "--wheels", str(house)]
    assert main([*command, "--config", str(tmp_path / "client.toml")]) == 2
    assert "did you mean broker.url" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(house, tmp_path_factory) -> Path:
    """A tree with the client, of which copies are made as of a card: nothing in it names its own path."""
    folder = tmp_path_factory.mktemp("installed")
    np.savez(folder / "examples.npz", x=np.zeros((5, 1, 8, 8), np.float32), y=np.zeros(5, np.int64))
    root = bare(folder / "root")
    assert install(root, house, "mqtt://127.0.0.1:1", folder / "examples.npz", "--fleet", "lab") == 0
    return root


@pytest.fixture
def device(installed, tmp_path) -> Path:
    shutil.copytree(installed, tmp_path / "root", symlinks=True)
    return tmp_path / "root"


@pytest.fixture
def service(device, tmp_path, embedded_broker, monkeypatch) -> Iterator[Supervisor]:
    """A client that was installed, runs under the supervisor and has joined."""
    config = device / "etc/sparsefleet/client.toml"
    text = (
        config.read_text()
        .replace("/var/", f"{device}/var/")
        .replace("mqtt://127.0.0.1:1", embedded_broker.url)
    )
    password = f'username = "device"\npassword = "{USERS["device"]}"'
    config.write_text(text.replace('username = "device"', password) + dumps({"meter": {"idle_s": 0.1}}))
    with Supervisor(Layout(device).unit, device, tmp_path / "supervisor") as supervisor:
        monkeypatch.setenv("PATH", supervisor.path)
        assert supervisor.answer("start") == ""
        await_status(supervisor, "joined")
        yield supervisor


def await_status(supervisor: Supervisor, words: str, timeout_s: float = 60.0) -> float:
    """Wait for the client's own words; return how long it took."""
    begin_s = time.monotonic()
    while words not in supervisor.answer("show"):
        assert time.monotonic() - begin_s < timeout_s, supervisor.log.read_text()
        time.sleep(0.05)
    return time.monotonic() - begin_s


def update(tree: Path, wheel: Path, *more: str) -> int:
    return main(["device", "update", str(wheel), "--root", str(tree), *more])


CRASHES = {
    "tools/client.py": lambda text: text.replace(
        "    config = _config(options)\n", "    raise SystemExit(3)\n"
    )
}


@pytest.mark.slow
@pytest.mark.alone
def test_a_good_update_runs_and_keeps_the_way_back(service, device, house, tmp_path, capsys):
    assert update(device, repacked(ours(house), tmp_path, "9.0.0", {})) == 0
    layout = Layout(device)
    assert layout.current == "b"
    assert not layout.trial.exists()
    assert "joined" in service.answer("show")
    capsys.readouterr()
    main(["device", "status", "--root", str(device), "--json"])
    assert json.loads(capsys.readouterr().out)["versions"]["b"] == "9.0.0"
    assert update(device, ours(house)) == 0  # And to an older one, into the environment that is spare now.
    assert layout.current == "a"


@pytest.mark.slow
@pytest.mark.alone
def test_an_update_that_crashes_at_start_is_undone_within_a_minute(
    service, device, house, tmp_path, capsys, fault
):
    row, begin_s = fault(31), time.monotonic()
    row.trials = 1
    assert update(device, repacked(ours(house), tmp_path, "9.0.0", CRASHES)) == 2
    await_status(service, "joined")
    row.recovered(time.monotonic() - begin_s)
    assert time.monotonic() - begin_s < 60
    assert Layout(device).current == "a"
    assert "exit 3" in [event for _, event in service.events]
    assert "Environment a runs again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.alone
def test_the_guard_undoes_it_when_nobody_is_there(service, device, house, tmp_path, fault):
    """The connection is lost: the updating process is killed once the new client was started."""
    row = fault(31)
    row.trials = 1
    wheel = repacked(ours(house), tmp_path, "9.0.0", CRASHES)
    command = [sys.executable, "-m", "tools.cli", "device", "update", str(wheel), "--root", str(device)]
    updating = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(event == "exit 3" for _, event in service.events):
        assert updating.poll() is None
        time.sleep(0.005)
    updating.send_signal(signal.SIGKILL)
    updating.wait()
    begin_s = time.monotonic()
    row.recovered(await_status(service, "joined"))
    assert time.monotonic() - begin_s < 60
    layout = Layout(device)
    assert layout.current == "a"
    assert not layout.trial.exists()
    assert [event for _, event in service.events].count("exit 3") == 2
    assert "back in environment a" in service.log.read_text()


@pytest.mark.slow
@pytest.mark.alone
def test_an_update_that_does_not_join_is_undone(service, device, house, tmp_path, capsys):
    port = "self._client.connect(self._host, self._port"
    elsewhere = {"protocol/mqtt.py": lambda text: text.replace(port, "self._client.connect(self._host, 1")}
    assert update(device, repacked(ours(house), tmp_path, "9.0.0", elsewhere), "--healthy-s", "8") == 2
    assert "not joined after 8 s" in capsys.readouterr().err
    await_status(service, "joined")
    assert Layout(device).current == "a"


@pytest.mark.slow
@pytest.mark.alone
def test_an_update_that_does_not_even_import_changes_nothing(service, device, house, tmp_path, capsys):
    broken = {"edge_client/link.py": lambda text: text + "\nimport nothing_of_this_name\n"}
    starts = len(service.events)
    assert update(device, repacked(ours(house), tmp_path, "9.0.0", broken)) == 2
    assert "nothing_of_this_name" in capsys.readouterr().err
    assert Layout(device).current == "a"
    assert len(service.events) == starts
