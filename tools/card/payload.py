"""The folder `sparsefleet` that every card gets: wheels, settings, and the script that installs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tools.card.settings import Settings
from tools.card.systems import System

FOLDER = "sparsefleet"


@dataclass(frozen=True)
class File:
    """One file of a card, with a path relative to it: its content, or a file to copy, or where a link leads."""

    path: str
    content: bytes = b""
    source: Path | None = None
    link: str = ""
    mode: int = 0o644  # A FAT partition has none.
    is_secret: bool = False

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if self.source is None else self.source.stat().st_size


def payload(settings: Settings, system: System, wheels: Sequence[Path], folder: str = FOLDER) -> list[File]:
    """Return its files. The secrets among them are removed from the card by install.sh."""
    script = resources.files("tools.card").joinpath("install.sh").read_text()
    files = [
        File(f"{folder}/install.sh", script.replace("@PYTHON@", system.target.python).encode(), mode=0o755),
        File(f"{folder}/client.toml", settings.client, mode=0o600, is_secret=True),
    ]
    if settings.ca is not None:
        files.append(File(f"{folder}/broker-ca.pem", settings.ca))
    if settings.data is not None:
        files.append(File(f"{folder}/data.npz", source=settings.data, mode=0o600, is_secret=True))
    return files + [File(f"{folder}/wheels/{path.name}", source=path) for path in wheels]
