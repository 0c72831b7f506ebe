"""GroupNorm, LayerNorm and their gradients against the reference, torch and hard numbers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.kernels import reference, reference_tokens

# examples, channels, height, width, groups
SHAPES = [(1, 4, 5, 4, 2), (7, 6, 3, 3, 1), (16, 8, 8, 8, 8), (33, 4, 1, 1, 2), (33, 6, 6, 7, 3)]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


class Case:
    """Activations with garbage in padding lanes, gradients with zeros there."""

    def __init__(self, shape, rng, in_halo=0, out_halo=0):
        self.n, channels, *size = shape
        self.maps = 3 * normal(rng, -(-self.n // 16) * 16, channels, *size) + 2
        self.maps[self.n :] *= 1e30  # Its square is infinite, and the square of its rounding error is, too.
        self.x = reference.blocked(self.maps, in_halo)
        self.d_maps = normal(rng, self.n, channels, *size)
        self.dy = reference.blocked(self.d_maps, out_halo)
        self.scale, self.bias = normal(rng, channels), normal(rng, channels)

    def forward(self):
        return self.x, self.scale, self.bias

    def backward(self, mean, invstd):
        return self.dy, self.x, self.scale, mean, invstd


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))


def check(op_type, case, run_op, attributes, in_halo=0, out_halo=0, threads=1):
    """Compare the valid lanes of forward and backward with the reference; return what torch is to agree with."""
    forward, backward = (
        {"GroupNorm": (reference_tokens.group_norm, reference_tokens.group_norm_grad)}
        | {"LayerNorm": (reference_tokens.layer_norm, reference_tokens.layer_norm_grad)}
    )[op_type]
    y, mean, invstd = run_op(op_type, *case.forward(), threads=threads, **attributes)
    expected = forward(*case.forward(), **attributes)
    y_examples = reference.examples(y, out_halo)
    close(y_examples[: case.n], reference.examples(expected[0], out_halo)[: case.n])
    for actual, wanted in zip((mean, invstd), expected[1:], strict=True):
        close(
            reference_tokens.out_of_lanes(actual)[: case.n], reference_tokens.out_of_lanes(wanted)[: case.n]
        )
    assert all(np.isfinite(output).all() for output in (y, mean, invstd))

    actual = run_op(f"{op_type}Grad", *case.backward(mean, invstd), threads=threads, **attributes)
    for a, b in zip(actual, backward(*case.backward(mean, invstd), **attributes), strict=True):
        assert a.shape == b.shape
        close(a, b)
    dx = reference.examples(actual[0], in_halo)
    np.testing.assert_array_equal(dx[case.n :], 0)
    return (y, actual[0]), (y_examples[: case.n], dx[: case.n], actual[1], actual[2])


@pytest.mark.parametrize(("in_halo", "out_halo"), [(0, 0), (1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_norm_agrees_with_the_reference_and_torch(
    shape, in_halo, out_halo, run_op, import_torch, rng, assert_halo_is_zero
):
    *sizes, groups = shape
    case = Case(sizes, rng, in_halo, out_halo)
    attributes = {"epsilon": 1e-5, "groups": groups, "in_halo": in_halo, "out_halo": out_halo}
    (y, dx), found = check("GroupNorm", case, run_op, attributes, in_halo, out_halo)
    assert_halo_is_zero(y, out_halo)
    assert_halo_is_zero(dx, in_halo)

    torch = import_torch()
    x, scale, bias = (
        torch.tensor(t, requires_grad=True) for t in (case.maps[: case.n], case.scale, case.bias)
    )
    expected = torch.nn.functional.group_norm(x, groups, scale, bias)
    expected.backward(torch.tensor(case.d_maps))
    for a, b in zip(found, (expected.detach(), x.grad, scale.grad, bias.grad), strict=True):
        close(a, b.numpy())


@pytest.mark.parametrize(
    "sizes", [(1, 5, 1, 7), (16, 8, 1, 64), (33, 24, 3, 3), (7, 192, 1, 9), (17, 6, 1, 1)]
)
def test_layer_norm_agrees_with_the_reference_and_torch(sizes, run_op, import_torch, rng):
    case = Case(sizes, rng)
    _, found = check("LayerNorm", case, run_op, {"epsilon": 1e-5})

    torch = import_torch()
    x, scale, bias = (
        torch.tensor(t, requires_grad=True) for t in (case.maps[: case.n], case.scale, case.bias)
    )
    last = x.permute(0, 2, 3, 1)
    expected = torch.nn.functional.layer_norm(last, last.shape[-1:], scale, bias).permute(0, 3, 1, 2)
    expected.backward(torch.tensor(case.d_maps))
    for a, b in zip(found, (expected.detach(), x.grad, scale.grad, bias.grad), strict=True):
        close(a, b.numpy())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    groups=st.integers(1, 4),
    halos=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_the_reference(sizes, groups, halos, threads, seed, run_op):
    n, channels, height, width = sizes
    case = Case((n, channels * groups, height, width), np.random.default_rng(seed), *halos)
    attributes = {"epsilon": 1e-3, "groups": groups, "in_halo": halos[0], "out_halo": halos[1]}
    check("GroupNorm", case, run_op, attributes, *halos, threads=threads)
    case = Case(sizes, np.random.default_rng(seed))
    check("LayerNorm", case, run_op, {"epsilon": 1e-3}, threads=threads)


@pytest.mark.parametrize("op_type", ["GroupNorm", "LayerNorm"])
def test_a_large_mean_does_not_swallow_the_variance(op_type, run_op, rng):
    """With a mean of 10000 and a deviation of 1, E[x^2] - E[x]^2 in float32 has no digit right."""
    maps = (normal(rng, 16, 64, 8, 8) + np.float32(1e4)).astype(np.float32)
    one = np.ones(64, np.float32)
    attributes = {"epsilon": 1e-5}
    members, axis = maps.astype(np.float64), 1
    if op_type == "GroupNorm":
        attributes |= {"groups": 2, "in_halo": 0, "out_halo": 0}
        members, axis = members.reshape(16, 2, -1), 2
    _, mean, invstd = run_op(op_type, reference.blocked(maps, 0), one, one, **attributes)
    flat = (16, -1)
    np.testing.assert_allclose(
        reference_tokens.out_of_lanes(mean), members.mean(axis=axis).reshape(flat), rtol=2e-7
    )
    exact = 1 / np.sqrt(members.var(axis=axis) + 1e-5)
    np.testing.assert_allclose(reference_tokens.out_of_lanes(invstd), exact.reshape(flat), rtol=1e-4)


@pytest.mark.parametrize("op_type", ["GroupNorm", "GroupNormGrad", "LayerNorm", "LayerNormGrad"])
def test_results_are_the_same_bits_for_any_number_of_threads(op_type, make_node, rng):
    case = Case((33, 24, 16, 16), rng)
    attributes = {"epsilon": 1e-5}
    statistics = 256
    if op_type.startswith("Group"):
        attributes |= {"groups": 2, "in_halo": 0, "out_halo": 0}
        statistics = 2
    inputs = case.forward()
    if op_type.endswith("Grad"):
        inputs = case.backward(normal(rng, 3, statistics, 16), normal(rng, 3, statistics, 16))
    expected = None
    for threads in (1, 2, 3):
        outputs = [o.tobytes() for o in make_node(op_type, inputs, threads=threads, **attributes)(*inputs)]
        expected = expected or outputs
        assert outputs == expected


def test_gradients_that_nobody_wants_are_left_out(run_op, rng):
    case = Case((7, 4, 3, 3), rng)
    attributes = {"epsilon": 1e-5, "groups": 2, "in_halo": 0, "out_halo": 0}
    inputs = case.backward(normal(rng, 1, 2, 16), normal(rng, 1, 2, 16))
    expected = reference_tokens.group_norm_grad(*inputs, **attributes)
    for position, name in enumerate(("dx", "dscale", "dbias")):
        (found,) = run_op("GroupNormGrad", *inputs, wanted=[name], **attributes)
        close(found, expected[position])


def test_wrong_inputs_are_errors(run_op, rng):
    case = Case((7, 4, 3, 3), rng)
    attributes = {"epsilon": 1e-5, "groups": 2, "in_halo": 0, "out_halo": 0}
    with pytest.raises(Exception, match="groups is 3, which does not divide 4 channels"):
        run_op("GroupNorm", *case.forward(), **(attributes | {"groups": 3}))
    with pytest.raises(Exception, match=r"scale has shape \[2\], expected \[4\]"):
        run_op("GroupNorm", case.x, case.scale[:2], case.bias, **attributes)
    with pytest.raises(Exception, match="epsilon is negative"):
        run_op("LayerNorm", *case.forward(), epsilon=-1.0)
    mean = normal(rng, 1, 9, 16)
    with pytest.raises(Exception, match=r"mean has shape \[1, 9, 16\], expected \[1, 2, 16\]"):
        run_op("GroupNormGrad", *case.backward(mean, mean), **attributes)
    with pytest.raises(Exception, match=r"dy has shape .*, expected \[1, 4, 3, 3, 16\]"):
        run_op("LayerNormGrad", case.dy[:, 1:], case.x, case.scale, mean, mean, epsilon=1e-5)
