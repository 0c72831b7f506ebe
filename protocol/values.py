"""Values <-> bytes: how exact the numbers of a body are.

    f32, f16, bf16    floating point, rounded to nearest even; in byte planes
    int8, int4        a uniform grid of 2^b - 1 levels around zero, from -largest to +largest
    log8, log4        a sign and a level: zero, or largest * 2^(-R (L - level) / (L - 1)), level 1 to L.
                      L = 127 over R = 16 octaves, and L = 7 over 6: powers of two

The quantised ones have a `largest` for each part (a layer), so that a layer of small weights keeps its
own grid. Zero is exactly zero. Rounding is stochastic: a value between two levels takes the upper one
with a probability in proportion, so the mean over many clients is unbiased. It is seeded by the
values themselves: whoever rounds the same values gets the same levels. What is on the grid already
stays there, so that rounding twice is rounding once, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedMessage
from protocol.layout import Vector

ValueFormat = Literal["f32", "f16", "bf16", "int8", "int4", "log8", "log4"]
SideFormat = Literal["f32", "f16"]
Counts = Sequence[int]  # Stored values of each part.

_DTYPES: Mapping[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "int8": 8, "int4": 4, "log8": 8, "log4": 4}
_OCTAVES = {"log8": 16.0, "log4": 6.0}
# A value this near to a level, in levels, is on it: its own arithmetic may have rounded it.
_ON_GRID = 1e-4


@dataclass(frozen=True, eq=False)
class Coded:
    """Values as they travel."""

    data: bytes
    largest: Vector  # Of each part; empty for floating point.


def is_quantised(value_format: str) -> bool:
    """Whether the format has levels instead of floating point."""
    return value_format[:3] in ("int", "log")


def num_bytes(count: int, value_format: str) -> int:
    """Return the length of so many values."""
    return (count * _BITS[value_format] + 7) // 8


def encode_values(values: Vector, counts: Counts, value_format: ValueFormat) -> Coded:
    """Return the values in their format; `counts` says how many belong to each part.

    Raises:
        ValueError: a value is not finite, or beyond the format's range.
    """
    _refuse_not_finite(values)
    if not is_quantised(value_format):
        return Coded(_to_planes(_floating(values, value_format)), np.empty(0, np.float32))
    ends = np.cumsum(np.asarray(counts, np.int64))
    parts = np.split(values, ends[:-1])
    largest = np.asarray([np.abs(part).max(initial=0.0) for part in parts], np.float32)
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(values.tobytes()).digest(), np.uint32))
    level = _linear_levels if value_format.startswith("int") else _log_levels
    codes = np.zeros(values.size, np.int8)
    begin = 0
    for part, most in zip(parts, largest, strict=True):
        if most > 0:
            codes[begin : begin + part.size] = level(part, float(most), value_format, rng)
        begin += part.size
    return Coded(_pack(codes, value_format), largest)


def decode_values(data: bytes | memoryview, counts: Counts, value_format: str, largest: Vector) -> Vector:
    """Return the values that `encode_values` stands for, float32, all finite.

    Raises:
        MalformedMessage: bytes that it would not have written.
    """
    if not is_quantised(value_format):
        return _from_planes(data, value_format)
    if not bool(np.isfinite(largest).all()) or bool((largest < 0).any()):
        raise MalformedMessage("the largest value of a part is negative or not finite")
    count = int(sum(counts))
    codes = _unpack(data, count, value_format)
    each = np.repeat(largest, np.asarray(counts, np.int64))
    top = 2 ** (_BITS[value_format] - 1) - 1
    if value_format.startswith("int"):
        if count and int(codes.min()) < -top:
            raise MalformedMessage("a level is beyond the grid")
        found = codes.astype(np.float64) * each / top
    else:
        levels = _log_table(value_format)
        if bool((codes == -128).any()):
            raise MalformedMessage("a negative zero")
        found = np.sign(codes) * levels[np.abs(codes)] * each
    if bool(((codes != 0) & (each == 0)).any()):
        raise MalformedMessage("a part has levels but no largest value")
    return np.asarray(found, np.float32)


def _refuse_not_finite(values: Vector) -> None:
    is_finite = np.isfinite(values)
    if not bool(is_finite.all()):
        place = int(np.argmin(is_finite))
        raise ValueError(f"value {values[place]} at stored position {place} is not finite")


# Floating point


def _floating(values: Vector, value_format: str) -> npt.NDArray[Any]:
    if value_format == "bf16":  # The upper half of a float32, rounded to nearest even.
        bits = values.view(np.uint32)  # Of finite values: adding half a step does not overflow.
        rounded: npt.NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        too_large = (rounded & 0x7F80) == 0x7F80
    else:
        with np.errstate(over="ignore"):
            rounded = values.astype(_DTYPES[value_format], copy=False)
        too_large = ~np.isfinite(rounded)
    if bool(too_large.any()):
        worst = values[int(np.argmax(np.where(too_large, np.abs(values), 0)))]
        raise ValueError(f"the largest value, {worst}, is beyond the range of {value_format}")
    return rounded


def _to_planes(values: npt.NDArray[Any]) -> bytes:
    """The first byte of every value, then the second, and so on: exponents repeat, mantissas do not."""
    return values.view(np.uint8).reshape(values.size, values.itemsize).T.tobytes()


def _from_planes(data: bytes | memoryview, value_format: str) -> Vector:
    planes = np.frombuffer(data, np.uint8).reshape(_BITS[value_format] // 8, -1)
    raw = np.ascontiguousarray(planes.T).reshape(-1)
    if value_format == "bf16":
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = raw.view(_DTYPES[value_format]).astype(np.float32, copy=False)
    if not bool(np.isfinite(values).all()):
        raise MalformedMessage("a value is not finite")
    return values


# Levels


def _linear_levels(
    part: Vector, largest: float, value_format: str, rng: np.random.Generator
) -> npt.NDArray[np.int8]:
    top = 2 ** (_BITS[value_format] - 1) - 1
    exact = part.astype(np.float64) * (top / largest)
    nearest = np.rint(exact)
    drawn = np.floor(exact + rng.random(part.size))
    found = np.where(np.abs(exact - nearest) < _ON_GRID, nearest, drawn)
    return np.asarray(found.clip(-top, top), np.int8)


def _log_table(value_format: str) -> npt.NDArray[np.float64]:
    """Magnitudes by level, relative to the largest; 0 for level 0."""
    top = 2 ** (_BITS[value_format] - 1) - 1
    exponents = -_OCTAVES[value_format] * (top - np.arange(1, top + 1)) / (top - 1)
    return np.concatenate([[0.0], np.exp2(exponents)])


def _log_levels(
    part: Vector, largest: float, value_format: str, rng: np.random.Generator
) -> npt.NDArray[np.int8]:
    table = _log_table(value_format)
    exact = np.abs(part.astype(np.float64)) / largest
    upper = np.searchsorted(table * (1 - 1e-6), exact, "right").clip(1, len(table) - 1)
    lower = upper - 1
    # What lies on a level is found as `lower`; its share of the way up is nothing but rounding.
    share = (exact - table[lower]) / (table[upper] - table[lower])
    on_grid = np.where(share < _ON_GRID, lower, np.where(share > 1 - _ON_GRID, upper, -1))
    drawn = np.where(rng.random(part.size) < share, upper, lower)
    level = np.where(on_grid >= 0, on_grid, drawn)
    return np.where(part < 0, -level, level).astype(np.int8)


def _pack(codes: npt.NDArray[np.int8], value_format: str) -> bytes:
    if _BITS[value_format] == 8:
        return codes.tobytes()
    nibbles = np.zeros(codes.size + codes.size % 2, np.uint8)
    nibbles[: codes.size] = codes.view(np.uint8) & 0x0F
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def _unpack(data: bytes | memoryview, count: int, value_format: str) -> npt.NDArray[np.int8]:
    raw = np.frombuffer(data, np.uint8)
    if _BITS[value_format] == 8:
        return raw.view(np.int8)
    nibbles = np.empty(2 * raw.size, np.uint8)
    nibbles[0::2], nibbles[1::2] = raw & 0x0F, raw >> 4
    if bool(nibbles[count:].any()):
        raise MalformedMessage("bits to spare are not zero")
    codes = np.asarray((nibbles[:count] << 4).view(np.int8) >> 4, np.int8)
    if count and int(codes.min()) == -8:
        raise MalformedMessage("a level is beyond the grid")
    return codes
