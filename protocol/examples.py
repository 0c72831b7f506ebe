"""Examples: an .npz file with x [n, ...] and y [n], checked before anything trains on it.

    examples = load(path, input_shape=(1, 28, 28), num_classes=10)
    for x, y in batches(examples, batch_size=16, rng=rng): ...

Images are uint8, [n, h, w] or channel last [n, h, w, c]: they become float32 in 0..1, channel
first, as the models want them. Floats are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError
from protocol.method import Batch
from protocol.npz import Array, read_arrays

MAX_BYTES = 4 * 2**30  # More than any board has to spare; a damaged or hostile file declares more.


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples and their labels, in the file's order."""

    x: npt.NDArray[np.float32]  # [n, *input_shape], C-contiguous.
    y: npt.NDArray[Any]  # int64 [n], classes; or float32 [n, values], a regression's targets

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.y)


def load(
    path: Path,
    input_shape: Sequence[int],
    num_classes: int,
    max_bytes: int = MAX_BYTES,
    is_regression: bool = False,
) -> Examples:
    """Return the examples in `path`, in the form a model with this input and these classes needs.

    A regression's labels are real: [n, num_classes], or [n] for one value. `max_bytes` limits both the
    arrays in the file and their float32 form.

    Raises:
        DataError: missing or damaged file, missing key, other shape, NaN, labels out of range.
    """
    _must_exist(path)
    arrays = read_arrays(path, max_bytes, only=("x", "y"))
    for key in ("x", "y"):
        if key not in arrays:
            raise DataError(f"{path} has no array {key!r}; it needs x [n, ...] and y [n]")
    x, y = arrays["x"], arrays["y"]
    if is_regression:
        y = _targets(y, num_classes, path)
    else:
        check_labels(y, str(path), num_classes)
        y = y.astype(np.int64)
    if x.ndim == 0 or len(x) != len(y):
        raise DataError(f"{path}: x has {len(x) if x.ndim else 0} examples, y has {len(y)} labels")
    if not len(y):
        raise DataError(f"{path} has no examples; split the data among fewer clients")
    if x.size * 4 > max_bytes:
        raise DataError(f"{path}: x needs {x.size * 4} bytes as float32; at most {max_bytes} are allowed")
    x = _shaped(x, tuple(input_shape), path)
    # A uint8 is finite; checking only what can fail saves a pass over the images on a small board.
    if x.dtype == np.uint8:
        return Examples(np.divide(x, 255, dtype=np.float32, order="C"), y)
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is refused below.
        examples = Examples(np.ascontiguousarray(x, np.float32), y)
    check_finite(examples.x, str(path))
    return examples


def count(path: Path) -> int:
    """Return how many examples a file has, reading its labels only.

    Raises:
        DataError: missing or damaged file, or no labels.
    """
    _must_exist(path)
    arrays = read_arrays(path, MAX_BYTES, only=("y",))
    if "y" not in arrays or arrays["y"].ndim not in (1, 2):
        raise DataError(f"{path} has no array 'y' of labels [n] or [n, values]; it needs x [n, ...] and y")
    return len(arrays["y"])


def batches(examples: Examples, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield all examples once, shuffled, in contiguous batches of at most `batch_size`.

    The last batch may be smaller. If it would hold a single example beside larger batches, it is
    left out: the variance of one value is not defined, so batch normalization needs two.
    """
    order = rng.permutation(len(examples))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        if begin and len(chosen) == 1 < batch_size:
            return
        yield examples.x[chosen], examples.y[chosen]


def num_batches(count: int, batch_size: int) -> int:
    """How many batches `batches` makes of so many examples."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or (rest == 1 and not full))


def of_each_class(examples: Examples, per_class: int, rng: np.random.Generator) -> Examples:
    """Return up to `per_class` examples of each class that is present, chosen at random, by class.

    Raises:
        DataError: the examples are those of a regression.
    """
    if examples.y.ndim != 1:
        raise DataError("a regression has no classes to choose examples of; use a method that does not score")
    order = rng.permutation(len(examples))
    labels = examples.y[order]
    chosen = [order[np.flatnonzero(labels == label)[:per_class]] for label in np.unique(labels)]
    rows = np.concatenate(chosen) if chosen else order
    return Examples(examples.x[rows], examples.y[rows])


# Checking


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"{path} not found; make examples with: sparsefleet data split SOURCE --out {path.parent}"
        )


def check_labels(y: Array, place: str, num_classes: int | None = None) -> None:
    """Refuse labels that are not integers [n] in 0..num_classes-1; `place` begins the text.

    Raises:
        DataError: with the value, its index, and what is allowed.
    """
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{place}: y is {y.dtype} {list(y.shape)}, expected integer labels [n]")
    above = y >= num_classes if num_classes is not None else np.zeros(len(y), bool)
    wrong = np.flatnonzero((y < 0) | above)
    if wrong.size:
        allowed = f"0..{num_classes - 1}" if num_classes is not None else "0 and above"
        raise DataError(
            f"{place}: label {y[wrong[0]]} at example {wrong[0]} is out of range ({wrong.size} in all); "
            f"allowed are {allowed}"
        )


def _targets(y: Array, num_values: int, path: Path) -> npt.NDArray[np.float32]:
    """Return a regression's labels as float32 [n, num_values]."""
    if y.dtype.kind not in "fiu" or y.shape[1:] not in (
        (num_values,),
        () if num_values == 1 else (num_values,),
    ):
        raise DataError(f"{path}: y is {y.dtype} {list(y.shape)}, expected numbers [n, {num_values}]")
    with np.errstate(over="ignore"):  # Refused below.
        targets = np.ascontiguousarray(y, np.float32).reshape(len(y), num_values)
    check_finite(targets, f"{path}: y")
    return targets


def check_finite(x: Array, place: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: with how many there are, and the first example that has one.
    """
    finite = np.isfinite(x)
    if not finite.all():
        rows = np.flatnonzero(~finite.reshape(len(x), -1).all(axis=1))
        count = finite.size - np.count_nonzero(finite)
        raise DataError(
            f"{place}: x has {count} NaN or infinite values in {rows.size} examples, "
            f"the first at example {rows[0]}; fill in or remove them"
        )


def _shaped(x: Array, input_shape: tuple[int, ...], path: Path) -> Array:
    """Return x as [n, *input_shape]; images become channel first."""
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: x is {x.dtype}, expected numbers")
    shape = x.shape[1:]
    # Channel last comes first: a square image of 3 x 3 pixels and 3 channels could be read either way.
    if x.dtype == np.uint8 and len(input_shape) == 3 and shape == (*input_shape[1:], input_shape[0]):
        return x.transpose(0, 3, 1, 2)
    if shape == input_shape:
        return x
    # Only axes of length 1 come and go, or all become one; other reshapes would scramble pixels.
    flat = 1 in (len(shape), len(input_shape)) and math.prod(shape) == math.prod(input_shape)
    if flat or [n for n in shape if n != 1] == [n for n in input_shape if n != 1]:
        return x.reshape(len(x), *input_shape)
    raise DataError(
        f"{path}: an example is {x.dtype} {list(shape)}, the model expects {list(input_shape)} "
        "(only uint8 images may be channel last)"
    )
