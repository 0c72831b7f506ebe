"""Split a data set among clients: what `sparsefleet data split` does.

    report = split("mnist.npz", Path("data"), clients=5, how="dirichlet", alpha=0.5)

    data/client-000.npz ...   x [n, ...], y [n]: what protocol.examples.load reads
    data/test.npz             held out, for the coordinator
    data/split.json           how it was made, and who got what

The source is an .npz file with x_train, y_train, x_test, y_test, or with x and y (or label), of
which a test part is cut, or the name "digits" (scikit-learn's 8 x 8 digits). The same source, seed
and settings give the same bytes on the same versions of Python, NumPy and zlib.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError
from tools.dataset import read
from tools.partition import cut_test, dirichlet, iid, natural

How = Literal["iid", "dirichlet", "by"]
Array = npt.NDArray[Any]

TEST, SPLIT = "test.npz", "split.json"
MIN_EXAMPLES = 2  # Batch normalization needs two.

_KIND = "sparsefleet split 1"
_OURS = re.compile(r"client-\d+\.npz|test\.npz|split\.json")


@dataclass(frozen=True)
class ClientPart:
    """What one client got."""

    file: str
    id: str | None  # The natural id; None where chance decided.
    num_examples: int
    labels: dict[str, int]  # Examples of each label that is present.


@dataclass(frozen=True)
class SplitReport:
    """How a split was made; written as split.json."""

    source: str
    source_sha256: str
    how: str
    alpha: float | None
    by: str | None
    seed: int
    test_fraction: float | None  # None: the source has a test part of its own.
    num_test: int
    clients: tuple[ClientPart, ...]

    def to_json(self) -> str:
        """Return split.json."""
        return json.dumps({"kind": _KIND, **asdict(self)}, indent=1) + "\n"


def split(
    source: str | Path,
    out: Path,
    clients: int | None = None,
    how: How = "iid",
    alpha: float = 0.5,
    by: str | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    min_examples: int = MIN_EXAMPLES,
    force: bool = False,
) -> SplitReport:
    """Split `source` into the folder `out`.

    "iid" deals at random; "dirichlet" skews the labels, the more the smaller `alpha`; "by" makes
    one client of each distinct value of the array named `by`, or of the `clients` largest.
    `test_fraction` matters only where the source has no test part. An older split in `out` is
    replaced; another non-empty folder only with `force`, and then other files in it stay.

    Raises:
        ConfigError: settings that do not fit together or the data, or `out` is not free.
        DataError: the source is missing, damaged, or cannot be trained on.
    """
    _check_settings(clients, how, alpha, by, seed, test_fraction)
    data = read(source, by)
    if how == "by" and data.ids is None:
        raise ConfigError(f"{data.name} has no array {by!r} with one entry per example; name another with by")
    rows = np.arange(len(data.y))
    if data.test is None:
        rows, held_out = cut_test(data.y, test_fraction, seed)
        test = (data.x[held_out], data.y[held_out])
    else:
        test = data.test
    ids: Sequence[str | None]
    if how == "by" and data.ids is not None:
        ids, parts = natural(data.ids[rows], clients, min_examples)
    else:
        count = clients or 0
        if count * min_examples > len(rows):
            raise ConfigError(
                f"{len(rows)} examples are too few for {count} clients with at least {min_examples} each"
            )
        ids = [None] * count
        parts = (
            iid(len(rows), count, seed)
            if how == "iid"
            else dirichlet(data.y[rows], count, alpha, min_examples, seed)
        )
    _prepare(out, Path(source), force)
    width = max(3, len(str(len(parts) - 1)))
    told: list[ClientPart] = []
    for number, (id_, part) in enumerate(zip(ids, parts, strict=True)):
        chosen = rows[part]
        file = f"client-{number:0{width}d}.npz"
        _write(out / file, data.x[chosen], data.y[chosen])
        told.append(ClientPart(file, id_, len(chosen), _histogram(data.y[chosen])))
    _write(out / TEST, *test)
    report = SplitReport(
        source=data.name,
        source_sha256=data.sha256,
        how=how,
        alpha=alpha if how == "dirichlet" else None,
        by=by if how == "by" else None,
        seed=seed,
        test_fraction=test_fraction if data.test is None else None,
        num_test=len(test[1]),
        clients=tuple(told),
    )
    # Last, so that a folder with it is complete.
    (out / SPLIT).write_text(report.to_json(), encoding="utf-8")
    return report


# Settings and files


def _check_settings(
    clients: int | None, how: str, alpha: float, by: str | None, seed: int, test_fraction: float
) -> None:
    if how not in ("iid", "dirichlet", "by"):
        raise ConfigError(f"how is {how!r}; choose iid, dirichlet or by")
    if (how == "by") != (by is not None):
        raise ConfigError('name the array of natural ids with by, and only together with how = "by"')
    if clients is None and how != "by":
        raise ConfigError(f"how = {how!r} needs the number of clients")
    if clients is not None and clients < 1:
        raise ConfigError(f"clients is {clients}, expected at least 1")
    if how == "dirichlet" and not 0.001 <= alpha <= 1e6:  # Below, a class goes to one client anyway.
        raise ConfigError(f"alpha is {alpha:g}, expected 0.001 to 1000000")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected at least 0")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction:g}, expected above 0 and below 1")


def _prepare(out: Path, source: Path, force: bool) -> None:
    """Make `out` an existing folder without files of an older split.

    Raises:
        ConfigError: it is a file, holds the source under one of our names, or holds foreign files.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder")
    if source.parent.resolve() == out.resolve() and _OURS.fullmatch(source.name):
        raise ConfigError(f"{source} would be overwritten by its own split; choose another folder")
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if entries and not force and not _is_split(out):
        raise ConfigError(
            f"{out} is not empty and is no finished split (it has {', '.join(entries[:3])}); "
            "choose another folder, or force"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in entries:
            if _OURS.fullmatch(name):
                (out / name).unlink()
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error


def _is_split(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / SPLIT).read_text(encoding="utf-8"))["kind"] == _KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, x: Array, y: Array) -> None:
    """Write an .npz whose bytes depend on the arrays alone: no dates, no permissions of the day."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("x", x), ("y", y)):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED  # Images shrink to a half or less, on slow links.
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _histogram(labels: Array) -> dict[str, int]:
    values, counts = np.unique(labels, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
