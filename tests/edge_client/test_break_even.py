"""Which layers run dense: the library's guess, a device's figure, and what the report says of it."""

import numpy as np
import pytest

from edge_client import break_even
from edge_client.break_even import FILE, NEVER, BreakEven
from edge_client.kernels import library_path
from edge_client.ort import PORTABLE, kernel_isa
from edge_client.runtime import open_runtime
from protocol import artifact as artifacts
from protocol.errors import DataError
from protocol.layout import PRUNABLE
from protocol.sparse import Mask, SparseVector


@pytest.fixture(autouse=True)
def _guess_afterwards():
    yield
    break_even.use(library_path(), 0.0, 0.0)


def test_without_a_calibration_the_librarys_guess_is_used_and_named(tmp_path):
    dense_from, winograd_from = break_even.current(library_path())
    assert 0.1 < winograd_from < dense_from < 1.0
    kernels = f"dense from {dense_from:.2f}, Winograd from {winograd_from:.2f} (default)"
    assert break_even.apply(library_path(), tmp_path) == f"{kernel_isa(library_path())}, {kernels}"


def test_a_calibration_of_this_instruction_set_is_used_and_named(tmp_path):
    isa = kernel_isa(library_path())
    break_even.save(tmp_path, BreakEven(0.71, isa, 1, "resnet8", 0.21))
    kernels = f"{isa}, dense from 0.71, Winograd from 0.21 (calibrated)"
    assert break_even.apply(library_path(), tmp_path) == kernels
    assert break_even.current(library_path()) == (0.71, 0.21)


def test_a_calibration_of_before_winograd_remains_valid(tmp_path):
    _, winograd_from = break_even.current(library_path())
    isa = kernel_isa(library_path())
    text = f'{{"dense_from": 0.7, "isa": "{isa}", "threads": 1, "model": "m"}}'
    (tmp_path / FILE).write_text(text)
    assert break_even.apply(library_path(), tmp_path).endswith("(calibrated)")
    assert break_even.current(library_path()) == (0.7, winograd_from)


def test_a_calibration_of_another_instruction_set_is_not_used_and_that_is_said(tmp_path):
    break_even.save(tmp_path, BreakEven(0.71, "sve", 1, "resnet8"))
    assert break_even.apply(library_path(), tmp_path).endswith(f"(default; {FILE} is for sve)")
    assert break_even.current(library_path())[0] != 0.71


DAMAGED = (
    b"",
    b"{}",
    b'{"dense_from": -1, "isa": "x", "threads": 1, "model": "m"}',
    b'{"dense_from": 0, "isa": "x", "threads": 1, "model": "m"}',
    b'{"dense_from": 0.5, "winograd_from": 3, "isa": "x", "threads": 1, "model": "m"}',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_calibration_is_an_error_with_its_cure(tmp_path, text):
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(DataError, match="calibrate again"):
        break_even.apply(library_path(), tmp_path)


def test_a_step_takes_the_kernels_of_the_moment_and_both_agree(artifact):
    """The same runtime, switched between steps: other kernels, hence other bits, but the same numbers."""
    manifest = artifacts.read(artifact("cnn"))
    runtime = open_runtime(PORTABLE, manifest, artifact("cnn"), library_path(), threads=1)
    rng = np.random.default_rng(0)
    stored = [np.arange(p.offset, p.end)[:: 2 if p.role == PRUNABLE else 1] for p in manifest.layout.pieces]
    mask = Mask(np.concatenate(stored).astype(np.int32), manifest.layout.size)
    runtime.bind(SparseVector(mask, rng.uniform(0.01, 0.1, mask.nnz).astype(np.float32)))
    batch = rng.standard_normal((16, *manifest.input_shape), dtype=np.float32), np.arange(16) % 10
    found = {}
    sparse, dense, winograd = (NEVER, NEVER), (0.4, NEVER), (NEVER, 0.4)
    for densities in (sparse, dense, winograd, sparse, dense):
        break_even.use(library_path(), *densities)
        runtime.step(batch)
        gradient = runtime.gradient.copy()
        if densities in found:
            np.testing.assert_array_equal(gradient, found[densities])
        found[densities] = gradient
    scale = np.abs(found[sparse]).max()
    for densities in (dense, winograd):
        assert not np.array_equal(found[sparse], found[densities])
        np.testing.assert_allclose(found[densities], found[sparse], rtol=1e-3, atol=1e-5 * scale)
    assert not np.array_equal(found[dense], found[winograd])
