"""The yardsticks do the work that they say: what they compute is compared with NumPy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tools.bench import roofline


@pytest.fixture(scope="module")
def limits() -> roofline.Limits:
    return roofline.Limits.load()


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def test_the_gather_multiplies_every_entry_in_every_round(limits):
    rng = np.random.default_rng(0)
    tile = limits.library.sparsefleet_roofline_tile()
    x = rng.standard_normal(4 * tile).astype(np.float32)
    value, offset = rng.standard_normal(10).astype(np.float32), 16 * np.arange(10, dtype=np.int32)
    read_ahead = np.concatenate(
        (offset, np.full(limits.library.sparsefleet_roofline_ahead(), 2**30, np.int32))
    )
    sums = np.zeros(limits.sums.size, np.float32)
    done = limits.library.sparsefleet_roofline_gather(
        pointer(x), pointer(value), pointer(read_ahead), long(10), long(3), pointer(sums)
    )
    assert done == 2 * 3 * 10 * tile
    wanted = 3 * sum(v * x[o : o + tile].astype(np.float64) for v, o in zip(value, offset, strict=True))
    np.testing.assert_allclose(sums[:tile], wanted, rtol=1e-5, atol=1e-5)


def test_the_multiply_adds_are_done(limits):
    sums = np.full(limits.sums.size, 0.5, np.float32)
    done = limits.fma.__func__(roofline.Limits(limits.library, limits.isa, sums), 3)
    wanted = np.float32(0.5)
    for _ in range(3):
        wanted = wanted * np.float32(0.5) + np.float32(0.5)
    changed = int(np.count_nonzero(sums == wanted))
    assert done == 2 * 3 * changed
    assert changed > 0
    assert np.all(sums[changed:] == 0.5)


def test_reading_reads_everything_in_every_round(limits):
    x = np.arange(1024, dtype=np.float32)
    sums = np.zeros(limits.sums.size, np.float32)
    done = limits.library.sparsefleet_roofline_read(pointer(x), long(x.size), long(2), pointer(sums))
    assert done == 2 * x.nbytes
    assert sums.sum() == 2 * x.sum()


def test_scaling_writes_everything(limits):
    x, y = np.arange(1024, dtype=np.float32), np.zeros(1024, np.float32)
    factor = ctypes.c_float(2.0)
    done = limits.library.sparsefleet_roofline_scale(pointer(x), factor, long(x.size), pointer(y))
    assert done == x.nbytes + y.nbytes
    np.testing.assert_array_equal(y, 2 * x)


def test_every_limit_is_measured_and_shown(monkeypatch):
    monkeypatch.setattr(roofline, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(roofline, "DRAM_BYTES", 2**20)
    found = roofline.measure()
    assert found.pop("isa")
    assert len(found) == 6
    assert all(value > 0 for value in found.values())
    shown = "\n".join(roofline.lines({"isa": "neon", **found}))
    assert "gather l1" in shown
    assert "copy dram" in shown
