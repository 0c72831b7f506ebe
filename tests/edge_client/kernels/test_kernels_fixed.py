"""Index arrays that nobody changes are compared with a plan's once; all others in every call."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from edge_client.fixed_indices import FixedIndices
from edge_client.kernels import library_path

SIZE, NNZ = 24, 60


class Layer:
    """A linear layer, forward or backward, that finds its indices at one address."""

    def __init__(self, make_node, rng, is_gradient):
        self.x = rng.standard_normal((1, SIZE, 1, 1, 16)).astype(np.float32)
        self.values = rng.standard_normal(NNZ).astype(np.float32)
        self.masks = [np.sort(rng.permutation(SIZE * SIZE)[:NNZ]).astype(np.int32) for _ in range(2)]
        self.indices = self.masks[0].copy()
        self.is_gradient = is_gradient
        name = "SparseGemmGrad" if is_gradient else "SparseGemm"
        self.node = make_node(
            name, self._inputs(), out_features=SIZE, **({"wanted": ["dx"]} if is_gradient else {})
        )

    def _inputs(self):
        if self.is_gradient:
            return self.x, self.x, self.values, self.indices
        return self.x, self.values, None, self.indices

    def run(self):
        return self.node(*self._inputs())[0][0, :, 0, 0]

    def expected(self, mask):
        dense = np.zeros(SIZE * SIZE, np.float32)
        dense[self.masks[mask]] = self.values
        weight = dense.reshape(SIZE, SIZE)
        return (weight.T if self.is_gradient else weight) @ self.x[0, :, 0, 0]

    def write(self, mask):
        """As somebody would who breaks the promise."""
        ctypes.memmove(self.indices.ctypes.data, self.masks[mask].ctypes.data, self.indices.nbytes)

    def assert_runs(self, mask):
        np.testing.assert_allclose(self.run(), self.expected(mask), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[False, True], ids=["forward", "gradient"])
def layer(make_node, rng, request):
    return Layer(make_node, rng, request.param)


def test_indices_are_compared_in_every_call_unless_they_are_fixed(layer):
    layer.assert_runs(0)
    layer.write(1)
    layer.assert_runs(1)
    fixed = FixedIndices(library_path(), [layer.indices])
    layer.assert_runs(1)
    layer.write(0)
    layer.assert_runs(1)  # Nobody looked.
    fixed.release()
    layer.assert_runs(0)
    layer.write(1)
    layer.assert_runs(1)


def test_other_indices_at_the_same_address_are_not_taken_for_the_old_ones(layer):
    for mask in (0, 1, 0):
        layer.write(mask)
        fixed = FixedIndices(library_path(), [layer.indices])
        layer.assert_runs(mask)
        fixed.release()


def test_two_owners_both_have_to_release(layer):
    first, second = (FixedIndices(library_path(), [layer.indices]) for _ in range(2))
    layer.assert_runs(0)
    first.release()
    first.release()
    layer.write(1)
    layer.assert_runs(0)
    second.release()
    layer.assert_runs(1)


def test_an_owner_that_is_gone_has_released(layer):
    fixed = FixedIndices(library_path(), [layer.indices])
    layer.assert_runs(0)
    del fixed
    gc.collect()
    layer.write(1)
    layer.assert_runs(1)


def test_fixed_arrays_are_read_only_and_must_be_what_the_op_reads(rng):
    array = np.arange(4, dtype=np.int32)
    FixedIndices(library_path(), [array])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    for wrong in (np.arange(4), np.arange(8, dtype=np.int32)[::2]):
        with pytest.raises(ValueError, match="expected contiguous int32"):
            FixedIndices(library_path(), [wrong])
