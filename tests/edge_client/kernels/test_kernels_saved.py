"""Saved activations: what is kept comes back bit by bit, and no more memory is touched than it takes."""

import numpy as np
import pytest

from edge_client.kernels import reference

SHAPES = [(1, 3, 5, 4), (7, 2, 3, 3), (16, 4, 8, 8), (33, 5, 1, 1), (40, 3, 6, 7), (17, 2, 2, 70)]


def activation(rng, shape, halo, zeros=0.5):
    """A blocked tensor with zeros, ties, and garbage in its padding lanes; and its number of examples."""
    x = np.round(rng.standard_normal(shape), 2).astype(np.float32)
    x[rng.random(shape) < zeros] = 0
    blocked = reference.blocked(x, halo)
    inner = reference.inner(blocked, halo)
    example = np.arange(blocked.shape[0])[:, None] * 16 + np.arange(16)
    garbage = np.broadcast_to((example >= shape[0])[:, None, None, None, :], inner.shape)
    inner[garbage] = 1e30
    return blocked, np.array([shape[0]], np.int64)


def scalars(keep, threshold=-1.0):
    return np.array(keep, np.float32), np.array(threshold, np.float32)


def assert_saved(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.05, 1e-9])
@pytest.mark.parametrize("halo", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_activation_is_saved_and_restored(shape, halo, keep, threads, run_op, rng):
    x, count = activation(rng, shape, halo)
    saved = run_op("SaveActivation", x, count, *scalars(keep), in_halo=halo, threads=threads)
    assert_saved(saved, reference.save_activation(x, count, *scalars(keep), in_halo=halo))
    (y,) = run_op("RestoreActivation", *saved[:3], out_halo=halo, threads=threads)
    np.testing.assert_array_equal(y, reference.restore_activation(*saved[:3], out_halo=halo))
    if keep == 1.0:
        np.testing.assert_array_equal(
            reference.examples(y, halo)[: shape[0]], reference.examples(x, halo)[: shape[0]]
        )
        assert not reference.examples(y, halo)[shape[0] :].any()


@pytest.mark.parametrize("keep", [1.0, 0.2])
@pytest.mark.parametrize("halo", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_is_saving_and_restoring(shape, halo, keep, run_op, rng):
    x, count = activation(rng, shape, halo)
    y, used = run_op("PruneActivation", x, count, *scalars(keep), in_halo=halo, threads=2)
    saved = run_op("SaveActivation", x, count, *scalars(keep), in_halo=halo)
    restored = run_op("RestoreActivation", *saved[:3], out_halo=halo)[0]
    valid = slice(shape[0])  # What becomes of padding lanes does not matter: their gradients are zero.
    np.testing.assert_array_equal(
        reference.examples(y, halo)[valid], reference.examples(restored, halo)[valid]
    )
    assert used == saved[3]


def test_a_given_threshold_is_used_and_ties_are_kept(run_op, rng):
    x = reference.blocked(np.array([[[[3.0, -2.0, 2.0, 1.0, 0.0, -0.0]]]], np.float32), 0)
    count = np.array([1], np.int64)
    for keep, threshold, expected, used in [
        (0.5, 2.0, [3, -2, 2], 2.0),
        (0.5, 2.5, [3], 2.5),
        (0.3, -1.0, [3, -2, 2], 2.0),  # k = ceil(0.3 * 6) = 2, whose magnitude three have.
        (0.9, -1.0, [3, -2, 2, 1], 0.0),  # k = 6: the threshold is zero, and zeros are not stored.
        (1.0, 2.5, [3, -2, 2, 1], 0.0),
    ]:
        _, _, values, found = run_op("SaveActivation", x, count, *scalars(keep, threshold), in_halo=0)
        assert values.tolist() == expected
        assert found == used


def test_nan_is_kept(run_op):
    x = reference.blocked(np.array([[[[np.nan, 0.5]]]], np.float32), 0)
    _, _, values, _ = run_op("SaveActivation", x, np.array([1]), *scalars(0.5, 1.0), in_halo=0)
    assert np.isnan(values).tolist() == [True]


@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_saved_as_halves(shape, halo, run_op, rng):
    x, count = activation(rng, shape, halo)
    saved = run_op("SaveActivationHalf", x, count, *scalars(1.0), in_halo=halo)
    bits, begin, values, used = reference.save_activation(x, count, *scalars(1.0), in_halo=halo)
    assert_saved(saved, (bits, begin, reference.halves(values), used))
    (y,) = run_op("RestoreActivationHalf", *saved[:3], out_halo=halo)
    rounded = saved[2].view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(y, reference.restore_activation(bits, begin, rounded, out_halo=halo))


def test_every_half_and_what_lies_between_is_rounded_as_numpy_rounds(run_op):
    """All finite halves, the ties between neighbours, and floats just beside the ties."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (half[:-1].astype(np.float64) + half[1:]) / 2
    positive = np.concatenate(
        [half, ties, np.nextafter(ties.astype(np.float32), 0), np.nextafter(ties.astype(np.float32), 1e9)]
    ).astype(np.float32)
    beyond = np.array([65519.9, 65520, 1e6, np.inf, 1e-8, 2.98e-8, 2.99e-8, 1e-45], np.float32)
    values = np.concatenate([positive, -positive, beyond, -beyond])
    x = reference.blocked(np.resize(values, (16, 1, 125, 128)), 0)
    assert x.size >= values.size
    (found,) = run_op("SaveHalf", x, in_halo=0)
    np.testing.assert_array_equal(found, reference.halves(x))
    (y,) = run_op("RestoreHalf", found, out_halo=1)
    np.testing.assert_array_equal(
        reference.inner(y, 1).view(np.uint32), found.view(np.float16).astype(np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_signs_and_halves_have_a_clean_halo(shape, halo, run_op, rng, assert_halo_is_zero):
    x, count = activation(rng, shape, halo)
    x = np.maximum(x, 0)
    (bits,) = run_op("SaveSigns", x, count, in_halo=halo)
    (signs,) = run_op("RestoreSigns", bits, out_halo=halo)
    (half,) = run_op("SaveHalf", x, in_halo=halo)
    (y,) = run_op("RestoreHalf", half, out_halo=halo)
    for restored in (signs, y):
        assert_halo_is_zero(restored, halo)
    valid = slice(shape[0])
    positive = reference.examples(x, halo)[valid] > 0
    np.testing.assert_array_equal(reference.examples(signs, halo)[valid], positive)
    np.testing.assert_array_equal(half, reference.halves(reference.inner(x, halo)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bits, begin, values: (bits, begin, values[:-1]), "values has shape"),
        (lambda bits, begin, values: (bits, begin + 1, values), r"begin\[0\] is 1"),
        (lambda bits, begin, values: (bits, begin[:-1], values), "begin has shape"),
        (lambda bits, begin, values: (bits | 1, begin, values), "the bits before it name"),
        (lambda bits, begin, values: (bits[0], begin, values), "expected .B, C, H, W."),
    ],
)
def test_what_does_not_belong_together_is_an_error(change, message, run_op, rng):
    x, count = activation(rng, (16, 4, 8, 8), 0)
    bits, begin, values, _ = run_op("SaveActivation", x, count, *scalars(1.0), in_halo=0)
    with pytest.raises(Exception, match=message):
        run_op("RestoreActivation", *change(bits, begin, values), out_halo=0)


def test_a_share_of_nothing_is_an_error(run_op, rng):
    x, count = activation(rng, (3, 2, 2, 2), 0)
    with pytest.raises(Exception, match="keep is 0"):
        run_op("SaveActivation", x, count, *scalars(0.0), in_halo=0)
