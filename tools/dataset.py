"""Data sets to split: .npz files, or the name "digits"; checked, and otherwise as they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol.errors import DataError
from protocol.examples import MAX_BYTES, check_finite, check_labels
from protocol.npz import Array, read_arrays

DIGITS = "digits"


@dataclass(frozen=True, eq=False)
class DataSet:
    """The part to split, the test part if there is one, the natural ids if they were asked for."""

    name: str
    sha256: str
    x: Array
    y: Array
    test: tuple[Array, Array] | None = None
    ids: Array | None = None


def read(source: str | Path, by: str | None = None) -> DataSet:
    """Return the source; `by` names the array of natural ids, one entry per example.

    Raises:
        DataError: missing, damaged, or nothing that a client could load and train on.
    """
    path = Path(source)
    if str(source) == DIGITS and not path.is_file():
        return _digits()
    if not path.is_file():
        raise DataError(f"{path} not found; give an .npz file, or the name {DIGITS!r}")
    names = ["x", "y", "label", "x_train", "y_train", "x_test", "y_test"]
    arrays = read_arrays(path, MAX_BYTES, only=[*names, by, f"{by}_train"] if by else names)
    if "x_train" in arrays and "y_train" in arrays:
        x, y = arrays["x_train"], arrays["y_train"]
        ids = arrays.get(f"{by}_train", arrays.get(by or ""))
    elif "x" in arrays and ("y" in arrays or "label" in arrays):
        x, y = arrays["x"], arrays["y"] if "y" in arrays else arrays["label"]
        ids = arrays.get(by or "")
    else:
        raise DataError(
            f"{path} needs arrays x_train and y_train, or x and y; it has {', '.join(arrays) or 'none'}"
        )
    test = None
    if "x_test" in arrays and "y_test" in arrays:
        test = _checked(arrays["x_test"], arrays["y_test"], f"{path} (test part)")
    if ids is not None and ids.shape != y.shape:
        ids = None
    return DataSet(path.name, _sha256(path), *_checked(x, y, str(path)), test=test, ids=ids)


def _digits() -> DataSet:
    try:
        import sklearn
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"{DIGITS!r} needs scikit-learn; install it with: pip install 'sparsefleet[demo]'"
        ) from error
    found = load_digits()
    x, y = (found.images / 16).astype(np.float32), found.target.astype(np.int64)  # Pixels are 0..16.
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    return DataSet(f"{DIGITS} (scikit-learn {sklearn.__version__})", digest, x, y)


def _checked(x: Array, y: Array, place: str) -> tuple[Array, Array]:
    """Return x and y as they are to be stored; what no client could load is refused here already."""
    check_labels(y, place)
    if x.dtype.kind not in "fiub" or x.ndim < 2 or len(x) != len(y):
        raise DataError(
            f"{place}: x is {x.dtype} {list(x.shape)} for {len(y)} labels, expected numbers [n, ...]"
        )
    if not len(y):
        raise DataError(f"{place} has no examples")
    if x.dtype == np.float64:
        with np.errstate(over="ignore"):  # Becomes infinite, and is refused below.
            x = x.astype(np.float32)
    if x.dtype.kind == "f":
        check_finite(x, place)
    return x, y.astype(np.int64)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
