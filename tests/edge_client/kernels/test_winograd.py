"""Which layers run by Winograd's algorithm, on maps of any shape, and how exact it is."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge_client import break_even
from edge_client.break_even import NEVER
from edge_client.kernels import library_path, reference

ALWAYS = 1e-9
DENSE, WINOGRAD = (ALWAYS, NEVER), (NEVER, ALWAYS)


@pytest.fixture(autouse=True)
def _guess_afterwards():
    yield
    break_even.use(library_path(), 0.0, 0.0)


class Layer:
    """A 3x3 convolution of stride 1 that stores all of its weights, unless `kept` says which."""

    def __init__(self, rng, n, channels, rows, side, pad=1, kept=1.0, kernel=3, stride=1):
        # The input gradient of a layer that pads by less reads as many pixels around dy.
        halo = max(pad, kernel - 1 - pad)
        self.attributes = {
            "out_channels": rows,
            "kernel_h": kernel,
            "kernel_w": kernel,
            "stride": stride,
            "pad": pad,
            "in_halo": halo,
            "out_halo": halo,
        }
        size = rows * channels * kernel**2
        self.indices = np.flatnonzero(rng.random(size) < kept).astype(np.int32)
        self.values = rng.standard_normal(len(self.indices), dtype=np.float32)
        lanes = -(-n // 16) * 16
        self.x = reference.blocked(rng.standard_normal((lanes, channels, *side), dtype=np.float32), halo)
        out = [(extent + 2 * pad - kernel) // stride + 1 for extent in side]
        self.dy = reference.blocked(rng.standard_normal((n, rows, *out), dtype=np.float32), halo)

    def run(self, run_op, densities, **options):
        """Return y, dx and dvalues."""
        break_even.use(library_path(), *densities)
        (y,) = run_op("SparseConv", self.x, self.values, None, self.indices, **options, **self.attributes)
        gradient = run_op(
            "SparseConvGrad", self.dy, self.x, self.values, self.indices, **options, **self.attributes
        )
        return y, *gradient[:2]

    def expected(self):
        y = reference.sparse_conv(self.x, self.values, None, self.indices, **self.attributes)
        gradient = reference.sparse_conv_grad(self.dy, self.x, self.values, self.indices, **self.attributes)
        return y, *gradient[:2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 40),
    channels=st.integers(16, 40),
    rows=st.integers(16, 150),
    side=st.tuples(st.integers(3, 19), st.integers(3, 19)),
    pad=st.integers(0, 3),
    kept=st.sampled_from([0.3, 1.0]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_any_map_agrees_with_the_reference(n, channels, rows, side, pad, kept, threads, seed, run_op):
    assume(min(side) + 2 * pad >= 3)
    agree(Layer(np.random.default_rng(seed), n, channels, rows, side, pad, kept), run_op, threads)


@pytest.mark.parametrize("side", [(8, 8), (9, 13)])  # As many tiles as go together with AVX-512, and more.
@pytest.mark.parametrize(("channels", "rows"), [(16, 257), (257, 16)])
def test_more_rows_than_go_together_agree_too(channels, rows, side, run_op, rng):
    agree(Layer(rng, 16, channels, rows, side), run_op)


def agree(layer, run_op, threads=1):
    """With the reference."""
    for actual, wanted in zip(layer.run(run_op, WINOGRAD, threads=threads), layer.expected(), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5 * scale)


def test_the_error_is_not_far_from_a_plain_convolutions(run_op, rng):
    """Root of the mean square, beside the largest value; float64 is exact here."""
    layer = Layer(rng, 16, 64, 64, (16, 16))
    expected = layer.expected()

    def errors(densities):
        found = zip(layer.run(run_op, densities), expected, strict=True)
        return np.array([np.sqrt(np.mean((a - b) ** 2)) / np.abs(b).max() for a, b in found])

    dense, winograd = errors(DENSE), errors(WINOGRAD)
    assert (winograd < 1e-6).all(), winograd
    assert (winograd < 10 * dense).all(), (dense, winograd)


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"side": (5, 7)}, True),
        ({"side": (4, 16)}, True),
        ({"side": (4, 12)}, False),  # Three tiles.
        ({"side": (5, 5)}, False),  # 25 of 64 pixels.
        ({"channels": 15}, False),
        ({"rows": 15}, False),
        ({"stride": 2}, False),
        ({"kernel": 5, "pad": 2}, False),
    ],
)
def test_layers_that_it_suits_take_it_and_others_do_not(change, suits, run_op, rng):
    """As the bits show: both algorithms round differently."""
    layer = Layer(rng, **({"n": 16, "channels": 16, "rows": 16, "side": (8, 8)} | change))
    dense, winograd = layer.run(run_op, DENSE), layer.run(run_op, (ALWAYS, ALWAYS))
    assert [not np.array_equal(a, b) for a, b in zip(dense, winograd, strict=True)] == [suits] * 3


def test_the_density_decides_and_a_batch_does_not(run_op, rng):
    layer = Layer(rng, 16, 16, 16, (8, 8), kept=0.5)
    sparse = layer.run(run_op, (NEVER, NEVER))
    assert np.array_equal(layer.run(run_op, (NEVER, 0.6))[0], sparse[0])
    half = layer.run(run_op, (NEVER, 0.4))
    assert not np.array_equal(half[0], sparse[0])
    two = Layer(rng, 32, 16, 16, (8, 8))
    two.indices, two.values = layer.indices, layer.values
    two.x = np.concatenate([layer.x, layer.x])
    y, *_ = two.run(run_op, (NEVER, 0.4))
    assert np.array_equal(y[0], half[0][0])
    assert np.array_equal(y[1], half[0][0])


@pytest.mark.parametrize("side", [(8, 8), (9, 10)])
def test_neighbouring_maps_leave_no_trace(side, run_op, rng):
    """Tiles at the rim of a map reach beyond it, into one of large numbers that no weight meets."""
    layer = Layer(rng, 16, 16, 16, side)
    met = layer.indices // 9 % 2 == 0  # Of every other channel of x.
    layer.indices, layer.values = layer.indices[met], layer.values[met]
    maps = reference.examples(layer.x, 1)
    wanted = layer.run(run_op, WINOGRAD)
    maps[:, 1::2] = 1e6
    layer.x = reference.blocked(maps.astype(np.float32), 1)
    for actual, expected in zip(layer.run(run_op, WINOGRAD), wanted, strict=True):
        assert np.array_equal(actual, expected)
