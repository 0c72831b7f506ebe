"""An update: into the spare environment, tested there, on trial, and back to the old one if it is not well.

Two watch over a trial. This process waits until the new client has joined. The guard, which systemd runs
before each start, counts starts that failed: it returns also when this process is gone, by a lost ssh
connection or a power cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.durable import replace_file
from tools.device import environment, systemd
from tools.device.environment import InstallFailed
from tools.device.layout import Layout

HEALTHY_S = 45.0  # To join: importing takes 10 s on a Raspberry Pi Zero 2 W.


class Returned(InstallFailed):
    """The update was not well; the old environment runs again."""


@dataclass(frozen=True)
class Updated:
    """What was done."""

    environment: str
    version: str
    before: str


def update(
    layout: Layout,
    wheels: Sequence[Path],
    healthy_s: float = HEALTHY_S,
    is_forced: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Updated:
    """Install the wheels into the spare environment and go over to it.

    Raises:
        InstallFailed: nothing is installed here, the client is in a round, or the new one fails its test;
            nothing has changed.
        Returned: the new client did not stay up or, where the old one had joined, did not join.
    """
    before = layout.current
    if before is None:
        raise InstallFailed(f"nothing is installed in {layout.home}; sparsefleet device install")
    was = systemd.state()
    if was.is_busy and not is_forced:
        raise InstallFailed(
            f"the client is at work ({was.status}); wait for the end of the round, or give --now"
        )
    name = layout.spare
    say(f"installing into {layout.home / name}")
    # One wheel of ours goes over the dependencies that are there; without a network, and in seconds.
    base = layout.home / before if len(wheels) == 1 else None
    environment.make(layout.home / name, [*wheels, *layout.pip] if base else wheels, base)
    version = environment.self_test(layout.home / name)
    say(f"its test passed: {version}")
    replace_file(layout.trial, f"{before}\n0\n".encode())
    layout.switch(name)
    reason = systemd.restart(healthy_s, was.is_joined)
    if not reason and layout.current == name:
        layout.trial.unlink(missing_ok=True)
        return Updated(name, version, before)
    say(f"not well: {reason or 'the guard has returned'}; going back")
    layout.trial.unlink(missing_ok=True)
    layout.switch(before)
    again = systemd.restart(healthy_s, must_join=False)
    now = "runs again" if not again else f"is current, but not well either: {again}"
    raise Returned(
        f"the new client in environment {name} was not well: {reason or 'it did not start twice'}. "
        f"Environment {before} {now}; journalctl -u sparsefleet says more"
    )
