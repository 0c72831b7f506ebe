"""Whose upload went into which round's mean: what clients may count on (protocol/commit.py).

The record becomes true with the checkpoint that holds it. Where clients need the mean itself, its
body stays in means/ for as long as it is the last one of any client, however long that stays away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from protocol.durable import replace_file

MEANS = "means"


class Commits:
    """Client -> the last round that averaged it."""

    def __init__(self, folder: Path, last: Mapping[str, int]) -> None:
        """Continue from a checkpoint's record."""
        self._folder = folder / MEANS
        self.last = dict(last)

    def close(self, round_number: int, clients: Iterable[str], mean: bytes | None) -> None:
        """Note who was averaged; write the mean's body where clients will need it."""
        self.last.update(dict.fromkeys(clients, round_number))
        if mean is not None:
            self._folder.mkdir(exist_ok=True)
            replace_file(self._path(round_number), mean)

    def mean(self, round_number: int) -> bytes:
        """Return the body of a round that is some client's last."""
        return self._path(round_number).read_bytes()

    def tidy(self) -> None:
        """Remove means that nobody needs any more. Only after the checkpoint: a resume may need them."""
        needed = {self._path(number).name for number in self.last.values()}
        for path in self._folder.glob("*.bin"):
            if path.name not in needed:
                path.unlink()

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{round_number}.bin"
