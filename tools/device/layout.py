"""Where things lie on a board, below a root that is / or a file tree that stands for it.

/opt/sparsefleet/a, b        two environments; `current` is a link to the one that runs
/opt/sparsefleet/guard       returns to the other one when an update does not start
/opt/sparsefleet/trial       while an update is on trial: the environment to return to, failed starts
/etc/sparsefleet/            client.toml, broker-ca.pem: the group may read them, nobody else
/var/lib/sparsefleet/        data.npz and state/: the client's own
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

UNIT = "sparsefleet.service"
USER = "sparsefleet"
GROUPS = ("video", "i2c", "gpio", "render")  # Of those that exist: they own the sensors' devices.
HOME = "/opt/sparsefleet"
NAMES = ("a", "b")


@dataclass(frozen=True)
class Layout:
    """The paths below one root."""

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        """Programs."""
        return self.root / "opt/sparsefleet"

    @property
    def settings(self) -> Path:
        """Configuration and secrets."""
        return self.root / "etc/sparsefleet"

    @property
    def config(self) -> Path:
        """The client's configuration."""
        return self.settings / "client.toml"

    @property
    def data(self) -> Path:
        """The client's own folder."""
        return self.root / "var/lib/sparsefleet"

    @property
    def unit(self) -> Path:
        """The unit's file."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def wanted(self) -> Path:
        """The link that starts the unit at boot: what `systemctl enable` makes."""
        return self.unit.parent / "multi-user.target.wants" / UNIT

    @property
    def command(self) -> Path:
        """The command for people."""
        return self.root / "usr/local/bin/sparsefleet"

    @property
    def guard(self) -> Path:
        """The script that returns to the other environment."""
        return self.home / "guard"

    @property
    def trial(self) -> Path:
        """What the guard reads."""
        return self.home / "trial"

    @property
    def pip(self) -> list[Path]:
        """The wheel of pip that installed the first environment: environments have none of their own."""
        return sorted((self.home / "pip").glob("pip-*.whl"))

    @property
    def current(self) -> str | None:
        """The name of the environment that runs; None where nothing is installed."""
        try:
            return str((self.home / "current").readlink())
        except OSError:
            return None

    @property
    def spare(self) -> str:
        """The name of the other one, which the next update fills."""
        return NAMES[1] if self.current == NAMES[0] else NAMES[0]

    def python(self, name: str) -> Path:
        """The interpreter of an environment."""
        return self.home / name / "bin" / "python"

    def switch(self, name: str) -> None:
        """Make an environment the current one: at every moment there is one, also if power fails."""
        fresh = self.home / "current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        os.replace(fresh, self.home / "current")
        os.sync()
