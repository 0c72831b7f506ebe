"""Installation: every step is listed before any is taken, so that --dry-run shows what would be done."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from protocol.durable import replace_file
from tools.device import environment, systemd
from tools.device.environment import InstallFailed
from tools.device.layout import GROUPS, HOME, UNIT, USER, Layout

COMMAND = f'#!/bin/sh\nexec {HOME}/current/bin/python -I -m tools.cli "$@"\n'
CHECK_CONFIG = (
    "import sys; from pathlib import Path; from edge_client import config; from protocol.tls import demand; "
    "broker = config.read(Path(sys.argv[1])).broker; demand(broker.url, broker.plaintext)"
)


@dataclass(frozen=True)
class Settings:
    """What a board's own files hold; None: as they are."""

    config: bytes | None = None
    ca: bytes | None = None
    data: Path | None = None
    cpu_quota: int | None = None  # Percent of one core.


@dataclass(frozen=True)
class Step:
    """One change: what people read, and what does it."""

    text: str
    take: Callable[[], object]


def steps(
    layout: Layout, wheels: Sequence[Path], settings: Settings, is_started: bool = True
) -> Iterator[Step]:
    """Yield the steps that install the client below the layout's root.

    Below / the unit is started too, if systemd runs. Owners can be set by root only, and are left alone for others.

    Raises:
        InstallFailed: there is no configuration, neither given nor installed.
    """
    if settings.config is None and not layout.config.is_file():
        raise InstallFailed(f"{layout.config} is not there yet: give --config FILE, or --broker URL")
    is_live, is_root = layout.root == Path("/"), os.geteuid() == 0
    if is_live and not is_root:
        raise InstallFailed("installing needs root: sudo ...")
    if is_root:
        yield from _user(layout)
    name = layout.current or layout.spare
    where = layout.home / name
    yield Step(f"make {where} from {len(wheels)} wheels", lambda: environment.make(where, wheels))
    yield Step(f"test {where}", lambda: environment.self_test(where))
    for path in wheels:
        if path.name.startswith("pip-"):
            yield from _write(layout.home / "pip" / path.name, path.read_bytes(), 0o644)
    package = resources.files("tools.device")
    yield from _write(layout.guard, package.joinpath("guard").read_bytes(), 0o755)
    yield Step(f"link {layout.home / 'current'} to {name}", lambda: layout.switch(name))
    yield from _write(layout.command, COMMAND.encode(), 0o755)
    yield from _folder(layout, layout.settings, 0o750, "root")
    for path, content in ((layout.settings / "broker-ca.pem", settings.ca), (layout.config, settings.config)):
        if content is not None:
            yield from _write(path, content, 0o640)
            yield from _own(layout, path, "root")
    yield Step(f"check {layout.config}", lambda: _check(layout, name))
    yield from _folder(layout, layout.data, 0o700, USER)
    if settings.data is not None:
        target = layout.data / "data.npz"
        yield from _write(target, settings.data.read_bytes(), 0o600)
        yield from _own(layout, target, USER)
    yield from _write(layout.unit, package.joinpath(UNIT).read_bytes(), 0o644)
    if settings.cpu_quota is not None:
        drop_in = layout.unit.with_name(f"{UNIT}.d") / "cpu.conf"
        yield from _write(drop_in, f"[Service]\nCPUQuota={settings.cpu_quota}%\n".encode(), 0o644)
    yield Step(f"enable {UNIT}", lambda: _enable(layout))
    if is_live and Path("/run/systemd/system").is_dir():  # sd_booted(3): not in a container, nor in a chroot.
        yield Step("systemctl daemon-reload", lambda: systemd.systemctl("daemon-reload"))
        if is_started:
            yield Step(f"start {UNIT}", lambda: systemd.systemctl("restart", "--no-block", UNIT))


def removal(layout: Layout, is_purged: bool) -> Iterator[Step]:
    """Yield the steps that remove the client; its own folder, configuration and user only if purged."""
    if layout.root == Path("/") and layout.unit.exists():
        yield Step(f"stop {UNIT}", lambda: systemd.systemctl("disable", "--now", UNIT))
    drop_ins = layout.unit.with_name(f"{UNIT}.d")
    gone = [layout.wanted, layout.unit, drop_ins, layout.command, layout.home]
    for path in (*gone, *((layout.settings, layout.data) if is_purged else ())):
        if path.exists() or path.is_symlink():
            yield Step(f"remove {path}", lambda path=path: _remove(path))  # type: ignore[misc]
    if is_purged and os.geteuid() == 0 and _id(layout, "passwd", USER) is not None:
        yield Step(f"remove the user {USER}", lambda: _run("userdel", *_prefix(layout), USER))


def _user(layout: Layout) -> Iterator[Step]:
    if _id(layout, "passwd", USER) is None:
        command = ["useradd", *_prefix(layout), "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/var/lib/sparsefleet", "--shell", "/usr/sbin/nologin", USER]
        yield Step(" ".join(command), lambda: _run(*command))
    groups = [name for name in GROUPS if _id(layout, "group", name) is not None]
    if groups:
        join = ["usermod", *_prefix(layout), "--append", "--groups", ",".join(groups), USER]
        yield Step(" ".join(join), lambda: _run(*join))


def _prefix(layout: Layout) -> list[str]:
    return [] if layout.root == Path("/") else ["--prefix", str(layout.root.resolve())]


def _id(layout: Layout, table: str, name: str) -> int | None:
    """A user's or group's number: in the tree's own files, of this system by its own lookups."""
    if layout.root == Path("/"):
        try:
            return pwd.getpwnam(name).pw_uid if table == "passwd" else grp.getgrnam(name).gr_gid
        except KeyError:
            return None
    path = layout.root / "etc" / table
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split(":")[2]) for line in lines if line.startswith(f"{name}:")), None)


def _write(path: Path, content: bytes, mode: int) -> Iterator[Step]:
    def take() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.tmp"), os.O_CREAT | os.O_WRONLY, 0o600)
        os.close(descriptor)  # Secrets are never readable, not even for a moment.
        replace_file(path, content)
        path.chmod(mode)

    yield Step(f"write {path} ({len(content)} bytes, mode {mode:04o})", take)


def _folder(layout: Layout, path: Path, mode: int, user: str) -> Iterator[Step]:
    def take() -> None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)

    yield Step(f"make the folder {path} (mode {mode:04o})", take)
    yield from _own(layout, path, user)


def _own(layout: Layout, path: Path, user: str) -> Iterator[Step]:
    """Give a path to a user and to our group, whose numbers are known when the step is taken."""

    def take() -> None:
        owner = 0 if user == "root" else _id(layout, "passwd", user)
        group = _id(layout, "group", USER)
        assert owner is not None  # The first step made them.
        assert group is not None
        os.chown(path, owner, group)

    if os.geteuid() == 0:
        yield Step(f"chown {user}:{USER} {path}", take)


def _check(layout: Layout, name: str) -> None:
    """Refuse a configuration that the client would refuse, while somebody still looks."""
    command = [str(layout.python(name)), "-I", "-c", CHECK_CONFIG, str(layout.config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallFailed(done.stderr.strip().splitlines()[-1].partition(": ")[2])


def _enable(layout: Layout) -> None:
    """What `systemctl enable` does, which also works in a tree of another machine."""
    layout.wanted.parent.mkdir(parents=True, exist_ok=True)
    layout.wanted.unlink(missing_ok=True)
    layout.wanted.symlink_to(f"/etc/systemd/system/{UNIT}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InstallFailed(f"{command[0]} is not installed: apt-get install passwd") from error
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(command)}: {done.stderr.strip()}")
