"""From a prepared card to a trained round: the generated first-boot files, in an arm64 Debian, by aarch64 programs.

proot and qemu-user run the root file system's own shell, useradd, Python and pip: nothing of it is imitated but
the boot. What is not covered: the kernel's command line, systemd (the unit's ExecStart is read and run; its
sandbox, users and limits are not), NetworkManager, and the image's own tools (raspi-config, userconf-pi),
without which the script goes its other way. onnxruntime is 1.24.1: 1.31.1 crashes under this qemu.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from tests.conftest import PASSWORD
from tools import aarch64, wheelhouse, wheels
from tools.card import firstrun
from tools.card.command import write
from tools.card.settings import Settings, Wifi
from tools.card.systems import SYSTEMS
from tools.device.client_file import client_file
from tools.split import split

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.aarch64]
PINS = ("onnxruntime==1.24.1",)
HASH = "$6$saltsalt$" + "x" * 86
INSTALL_BYTES = 150e6


@pytest.fixture
def root(tmp_path) -> Path:
    """A root file system as an image has it: unpacked, with the users that base-passwd makes."""
    unpacked = aarch64.board(ROOT / "build" / "aarch64", ROOT).root
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", unpacked, root], check=True)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for name in ("shadow", "gshadow"):
        (root / "etc" / name).touch(0o640)
    (root / "etc/hostname").write_text("raspberrypi\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 raspberrypi\n")
    return root


def board(root: Path, *command: str) -> list[str]:
    """The command line of a program of the root file system."""
    assert shutil.which("proot"), "proot not found; run tools/install-test-tools"
    inside = ["-0", "-r", str(root), "-w", "/", "-b", "/proc", "-b", "/sys", "-b", "/dev"]
    return ["proot", "-q", "qemu-aarch64-static", *inside, *command]


ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


def test_a_card_becomes_a_device_that_trains(root, tmp_path, federate):
    pytest.importorskip("sklearn")
    home = tmp_path / "home"
    export_model("cnn", (1, 8, 8), 10, home / "artifact", library_path())
    split(source="digits", out=home / "data", clients=1, how="iid", alpha=1.0, seed=0)
    one = federate(home, 1)
    one.write({"name": "fedpai", "density": 0.1}, rounds=1, deadline_s=240, join_timeout_s=240)

    system, card = SYSTEMS["bookworm"], root / "boot/firmware"
    wheel = wheels.build(ROOT, tmp_path / "dist", "aarch64")
    house = wheelhouse.download(str(wheel), tmp_path / "wheels", system.target, PINS)
    settings = Settings(
        name="edge-07",
        client=client_file("client-000", one.url, "fleet", password=PASSWORD),
        password_hash=HASH,
        wifi=Wifi("lab", "0" * 64, "DE"),
        data=home / "data/client-000.npz",
    )
    write(firstrun.files(settings, system, house, "root=PARTUUID=1-02 rootwait\n"), card)
    script = next(
        word for word in (card / "cmdline.txt").read_text().split() if word.startswith("systemd.run=")
    )

    # The first boot: what the kernel's command line names.
    done = subprocess.run(board(root, "/bin/sh", script.partition("=")[2]), env=ENVIRONMENT, timeout=580)
    log = (card / "sparsefleet/first-boot.log").read_text()
    assert done.returncode == 0, log
    assert "was not installed" not in log, log
    assert (card / "cmdline.txt").read_text() == "root=PARTUUID=1-02 rootwait\n"
    assert not (card / "firstrun.sh").exists()
    left = {path.name for path in (card / "sparsefleet").iterdir()}
    assert left == {"install.sh", "wheels", "first-boot.log"}  # No secret is left on the card.
    assert (root / "etc/hostname").read_text() == "edge-07\n"
    assert f"edge:{HASH}:" in (root / "etc/shadow").read_text()
    connection = root / "etc/NetworkManager/system-connections/sparsefleet.nmconnection"
    assert stat.S_IMODE(connection.stat().st_mode) == 0o600
    assert (root / "etc/systemd/system/multi-user.target.wants/sparsefleet.service").is_symlink()
    assert "sparsefleet:x:" in (root / "etc/passwd").read_text()
    installed = [path for path in (root / "opt/sparsefleet").rglob("*") if not path.is_symlink()]
    assert 100e6 < sum(path.stat().st_size for path in installed) < INSTALL_BYTES

    # The second boot: the unit's client joins the coordinator of this machine, trains and reports.
    one.start_coordinator("--out", str(one.out))
    unit = (root / "etc/systemd/system/sparsefleet.service").read_text()
    (command,) = [
        line.partition("=")[2].split() for line in unit.splitlines() if line.startswith("ExecStart=")
    ]
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"sparsefleet-first-boot-{os.getpid()}"
        manager.bind(f"\0{name}")
        listener = threading.Thread(target=listen, args=(manager, told), daemon=True)
        listener.start()
        with (one.folder / "client-000.log").open("wb") as output:
            client = subprocess.Popen(
                board(root, *command),
                env={**ENVIRONMENT, "NOTIFY_SOCKET": f"@{name}"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            summary = one.finish(timeout_s=400)
        finally:
            os.killpg(client.pid, signal.SIGTERM)
            try:
                client.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(client.pid, signal.SIGKILL)
                client.wait()
        listener.join(1.0)
    assert [row["updates"] for row in read_csv(Path(summary["report"]) / "rounds.csv")] == ["1"] * 2
    rows = read_csv(one.out / "devices.csv")
    assert {row["runtime"] for row in rows} == {"onnxruntime 1.24.1 portable"}
    assert all(row["kernels"].startswith("neon") for row in rows)
    assert "READY=1" in told
    assert "STATUS=joined, waiting for a task" in told
    assert any(": round 1, " in line for line in told)


def listen(manager: socket.socket, told: list[str]) -> None:
    """Collect what the client tells systemd."""
    manager.settimeout(0.5)
    while "STOPPING=1" not in told:
        try:
            told.extend(manager.recv(4096).decode().splitlines())
        except TimeoutError:
            continue
        except OSError:
            return
