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
    break_even.use(library_path(), 0.0)


def test_without_a_calibration_the_librarys_guess_is_used_and_named(tmp_path):
    guess = break_even.current(library_path())
    assert 0.3 < guess < 1.0
    assert (
        break_even.apply(library_path(), tmp_path)
        == f"{kernel_isa(library_path())}, dense from {guess:.2f} (default)"
    )


def test_a_calibration_of_this_instruction_set_is_used_and_named(tmp_path):
    isa = kernel_isa(library_path())
    break_even.save(tmp_path, BreakEven(0.71, isa, 1, "resnet8"))
    assert break_even.apply(library_path(), tmp_path) == f"{isa}, dense from 0.71 (calibrated)"
    assert break_even.current(library_path()) == 0.71


def test_a_calibration_of_another_instruction_set_is_not_used_and_that_is_said(tmp_path):
    break_even.save(tmp_path, BreakEven(0.71, "sve", 1, "resnet8"))
    assert break_even.apply(library_path(), tmp_path).endswith(f"(default; {FILE} is for sve)")
    assert break_even.current(library_path()) != 0.71


@pytest.mark.parametrize("text", [b"", b"{}", b'{"dense_from": -1, "isa": "x", "threads": 1, "model": "m"}'])
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
    for dense_from in (NEVER, 0.4, NEVER):
        break_even.use(library_path(), dense_from)
        runtime.step(batch)
        gradient = runtime.gradient.copy()
        if dense_from in found:
            np.testing.assert_array_equal(gradient, found[dense_from])
        found[dense_from] = gradient
    assert not np.array_equal(found[NEVER], found[0.4])
    scale = np.abs(found[NEVER]).max()
    np.testing.assert_allclose(found[0.4], found[NEVER], rtol=1e-3, atol=1e-5 * scale)
