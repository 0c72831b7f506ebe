"""BatchNorm and its gradient against the reference, torch and hard numbers."""

import numpy as np
import pytest

from edge_client.kernels import reference, reference_pool

SHAPES = [(1, 3, 5, 4), (7, 2, 3, 3), (16, 4, 8, 8), (33, 3, 1, 1), (33, 5, 6, 7)]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


class Case:
    """Activations with garbage in padding lanes, gradients with zeros there."""

    def __init__(self, shape, rng, in_halo=1, out_halo=1, training=1, grad_halo=1):
        self.n, self.c, self.h, self.w = shape
        self.attributes = {
            "epsilon": 1e-5,
            "training": training,
            "in_halo": in_halo,
            "out_halo": out_halo,
            "grad_halo": grad_halo,
        }
        lanes = -(-self.n // 16) * 16
        self.maps = 3 * normal(rng, lanes, *shape[1:]) + 2
        self.maps[self.n :] = 1e30  # its square is infinite
        self.x = reference.blocked(self.maps, in_halo)
        self.d_maps = normal(rng, *shape)
        self.dy = reference.blocked(self.d_maps, out_halo)
        self.scale, self.bias = normal(rng, self.c), normal(rng, self.c)
        self.mean, self.var = normal(rng, self.c), rng.random(self.c).astype(np.float32)
        self.count = np.array([self.n])

    def forward_inputs(self):
        return self.x, self.scale, self.bias, self.mean, self.var, self.count


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize(("in_halo", "out_halo"), [(0, 0), (1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_agrees_with_the_reference_and_torch(
    shape, in_halo, out_halo, training, run_op, import_torch, rng, assert_halo_is_zero
):
    case = Case(shape, rng, in_halo, out_halo, training)
    outputs = run_op("BatchNorm", *case.forward_inputs(), **case.attributes)
    expected = reference.batch_norm(*case.forward_inputs(), **case.attributes)
    assert_halo_is_zero(outputs[0], out_halo)
    y = reference.examples(outputs[0], out_halo)
    np.testing.assert_allclose(y[: case.n], reference.examples(expected[0], out_halo)[: case.n], 1e-4, 1e-5)
    assert np.isfinite(y).all()
    for a, b in zip(outputs[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    mean, invstd = outputs[1], outputs[3]
    gradient_inputs = (case.dy, case.x, case.scale, mean, invstd, case.count)
    actual = run_op("BatchNormGrad", *gradient_inputs, **case.attributes)
    for a, b in zip(actual, reference.batch_norm_grad(*gradient_inputs, **case.attributes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
    assert_halo_is_zero(actual[0], 1)
    np.testing.assert_array_equal(reference.examples(actual[0], 1)[case.n :], 0)

    torch = import_torch()
    x, scale, bias = (
        torch.tensor(t, requires_grad=True) for t in (case.maps[: case.n], case.scale, case.bias)
    )
    running_mean, running_var = torch.tensor(case.mean), torch.tensor(case.var)
    ty = torch.nn.functional.batch_norm(
        x, running_mean, running_var, scale, bias, training=bool(training), momentum=1.0
    )
    ty.backward(torch.tensor(case.d_maps))
    np.testing.assert_allclose(y[: case.n], ty.detach().numpy(), rtol=1e-4, atol=1e-5)
    # momentum 1 makes the running statistics equal to those of the batch.
    np.testing.assert_allclose(outputs[1], running_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs[2], running_var, rtol=1e-4)
    dx = reference.examples(actual[0], 1)[: case.n]
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(actual[1], scale.grad.numpy(), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(actual[2], bias.grad.numpy(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("is_sum", [False, True])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_with_relu_and_addition_is_one_after_the_other(
    shape, training, is_residual, is_sum, run_op, rng, assert_halo_is_zero
):
    case = Case(shape, rng, in_halo=0, out_halo=1, training=training, grad_halo=2)
    skip = reference.blocked(normal(rng, *case.maps.shape), 1)
    plain = run_op("BatchNorm", *case.forward_inputs(), **case.attributes)
    expected = reference.relu(plain[0] + skip if is_residual else plain[0])
    name = "BatchNormAddRelu" if is_residual else "BatchNormRelu"
    added = (skip,) if is_residual else ()
    fused = run_op(name, *case.forward_inputs(), *added, **case.attributes)
    np.testing.assert_allclose(fused[0], expected, rtol=1e-6, atol=1e-6)
    assert_halo_is_zero(fused[0], 1)
    for a, b in zip(fused[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(a, b)

    dy_other = reference.blocked(normal(rng, *shape), 1)
    masked = reference.relu_grad(case.dy + dy_other if is_sum else case.dy, fused[0])
    common = (case.x, case.scale, fused[1], fused[3], case.count)
    wanted = reference.batch_norm_grad(masked, *common, **case.attributes)
    side = fused[0] if is_residual else case.bias
    gradient = run_op(
        f"{name}{'Sum' if is_sum else ''}Grad",
        case.dy,
        *common,
        side,
        *((dy_other,) if is_sum else ()),
        **case.attributes,
    )
    for a, b in zip(gradient, wanted, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
    assert_halo_is_zero(gradient[0], 2)
    if is_residual:
        np.testing.assert_array_equal(gradient[3], masked)


@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_other_gradient_may_have_every_second_pixel_only(shape, is_residual, run_op, rng):
    case = Case(shape, rng, in_halo=0, out_halo=1)
    skip = reference.blocked(normal(rng, *case.maps.shape), 1)
    name = "BatchNormAddRelu" if is_residual else "BatchNormRelu"
    fused = run_op(name, *case.forward_inputs(), *((skip,) if is_residual else ()), **case.attributes)
    sparse = np.zeros(shape, np.float32)
    sparse[:, :, ::2, ::2] = normal(rng, *sparse[:, :, ::2, ::2].shape)
    common = (
        case.dy,
        case.x,
        case.scale,
        fused[1],
        fused[3],
        case.count,
        fused[0] if is_residual else case.bias,
    )
    full = run_op(f"{name}SumGrad", *common, reference.blocked(sparse, 1), **case.attributes)
    met = reference.blocked(sparse[:, :, ::2, ::2], 0)
    found = run_op(f"{name}SumGrad", *common, met, **case.attributes, other_step=2)
    for a, b in zip(found, full, strict=True):
        np.testing.assert_array_equal(a, b)


POOL = {"kernel_h": 2, "kernel_w": 2, "stride": 2, "pad": 0}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize(("in_halo", "out_halo"), [(0, 1), (1, 0), (2, 2)])
@pytest.mark.parametrize("shape", [(1, 3, 2, 4), (7, 2, 4, 2), (16, 4, 8, 8), (33, 5, 6, 10)])
def test_fused_with_maxima_is_one_after_the_other(
    shape, in_halo, out_halo, training, threads, run_op, rng, assert_halo_is_zero
):
    n, c, h, w = shape
    case = Case(shape, rng, in_halo, out_halo, training, grad_halo=1)
    case.scale[0] = -1.0  # its smallest input is the largest output
    case.maps[: case.n, :, :, 1] = case.maps[: case.n, :, :, 0]  # two equals in a window
    case.x = reference.blocked(case.maps, in_halo)
    apart = {**case.attributes, "out_halo": 0}
    between, *statistics = run_op("BatchNormRelu", *case.forward_inputs(), **apart)
    pool = {**POOL, "in_halo": 0, "out_halo": out_halo, "in_height": h, "in_width": w}
    expected, argmax = run_op("MaxPool", between, **pool)
    fused = run_op("BatchNormReluMaxPool", *case.forward_inputs(), threads=threads, **case.attributes)
    np.testing.assert_array_equal(fused[0], expected)
    for a, b in zip(fused[1:], statistics, strict=True):
        np.testing.assert_array_equal(a, b)

    dy = reference.blocked(normal(rng, n, c, h // 2, w // 2), out_halo)
    behind = reference_pool.max_pool_grad(dy, argmax, **pool)
    common = (case.x, case.scale, fused[1], fused[3], case.count)
    masked = reference.relu_grad(behind, between)
    wanted = reference.batch_norm_grad(masked, *common, **apart)
    found = run_op("BatchNormReluMaxPoolGrad", dy, *common, case.bias, threads=threads, **case.attributes)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
    assert_halo_is_zero(found[0], 1)
    np.testing.assert_array_equal(reference.examples(found[0], 1)[n:], 0)


def test_not_a_number_wins_a_window_as_in_torch(run_op, rng):
    case = Case((16, 1, 2, 4), rng, in_halo=0, out_halo=0, training=0)
    case.maps[0, 0, 1, 0] = np.nan
    case.x = reference.blocked(case.maps, 0)
    fused = run_op("BatchNormReluMaxPool", *case.forward_inputs(), **case.attributes)
    y = reference.examples(fused[0], 0)[: case.n]
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isfinite(y).sum() == y.size - 1


def test_maxima_of_a_map_with_an_odd_side_are_an_error(run_op, rng):
    case = Case((16, 1, 4, 3), rng)
    with pytest.raises(Exception, match="a map of odd height or width under 2x2 windows"):
        run_op("BatchNormReluMaxPool", *case.forward_inputs(), **case.attributes)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_recomputed_output_has_the_same_bits(shape, run_op, rng):
    case = Case(shape, rng)
    y, mean, _, invstd = run_op("BatchNormRelu", *case.forward_inputs(), **case.attributes)
    inputs = (case.x, case.scale, case.bias, mean, invstd, case.count, case.dy)
    (again,) = run_op("BatchNormReluAgain", *inputs, **case.attributes)
    np.testing.assert_array_equal(again, y)


def test_the_gradient_takes_the_side_of_the_relu_that_forward_took(run_op, rng):
    """Outputs a rounding error around zero: forward and gradient must decide alike."""
    case = Case((16, 2, 32, 32), rng)
    case.bias[:] = 1e-7
    case.maps[:] = np.float32(5) + rng.standard_normal(case.maps.shape).astype(np.float32) * 1e-6
    case.x = reference.blocked(case.maps, 1)
    y, mean, _, invstd = run_op("BatchNormRelu", *case.forward_inputs(), **case.attributes)
    ones = reference.blocked(np.ones((case.n, 2, 32, 32)), 1)
    inputs = (ones, case.x, case.scale, mean, invstd, case.count, case.bias)
    (d_bias,) = run_op("BatchNormReluGrad", *inputs, wanted=["dbias"], **case.attributes)
    taken = (reference.examples(y, 1) > 0).sum(axis=(0, 2, 3))
    assert 0 < taken.min() < taken.max() < 16 * 32 * 32
    np.testing.assert_array_equal(d_bias, taken)


def test_a_mean_far_from_the_first_pixels_does_no_harm(run_op, rng):
    """The variance is computed around a sample of pixels, here zeros in a map of thousands."""
    case = Case((16, 1, 32, 32), rng)
    case.maps[:] = 1000 + rng.standard_normal(case.maps.shape)
    case.maps[:, :, :4] = 0
    case.x = reference.blocked(case.maps, 1)
    _, _, var, _ = run_op("BatchNorm", *case.forward_inputs(), **case.attributes)
    np.testing.assert_allclose(var, case.maps.astype(np.float64).var(ddof=1), rtol=1e-5)


@pytest.mark.parametrize("pixels", [(16, 16), (40, 33)], ids=["every_16th_is_sampled", "across_rows"])
def test_a_large_mean_does_not_swallow_the_variance(pixels, run_op, rng):
    """With a mean of 10000 and a deviation of 1, E[x^2] - E[x]^2 in float32 has no digit right."""
    case = Case((33, 2, *pixels), rng)
    maps = (normal(rng, 33, 2, *pixels) + np.float32(1e4)).astype(np.float32)
    x = reference.blocked(maps, 1)
    inputs = (x, *case.forward_inputs()[1:])
    y, mean, var, invstd = run_op("BatchNorm", *inputs, **case.attributes)
    exact = maps.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var(axis=(0, 2, 3), ddof=1), rtol=1e-5)
    np.testing.assert_allclose(invstd, 1 / np.sqrt(exact.var(axis=(0, 2, 3)) + 1e-5), rtol=1e-5)
    normalized = (exact - exact.mean(axis=(0, 2, 3), keepdims=True)) / exact.std(
        axis=(0, 2, 3), keepdims=True
    )
    expected = normalized * case.scale[:, None, None] + case.bias[:, None, None]
    # 5e-4 is half a step of float32 at 10000, the rounding of the mean that normalize subtracts.
    np.testing.assert_allclose(reference.examples(y, 1)[:33], expected, atol=2e-3)


def test_statistics_that_nobody_wants_are_left_out(run_op, rng):
    case = Case((7, 2, 3, 3), rng)
    (y,) = run_op("BatchNorm", *case.forward_inputs(), wanted=["y"], **case.attributes)
    expected = reference.batch_norm(*case.forward_inputs(), **case.attributes)[0]
    np.testing.assert_allclose(y[..., :7], expected[..., :7], rtol=1e-4, atol=1e-5)
    inputs = (case.dy, case.x, case.scale, case.mean, case.var, case.count)
    expected_scale = reference.batch_norm_grad(*inputs, **case.attributes)[1]
    (d_scale,) = run_op("BatchNormGrad", *inputs, wanted=["dscale"], **case.attributes)
    np.testing.assert_allclose(d_scale, expected_scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op_type", ["BatchNorm", "BatchNormGrad"])
def test_results_are_the_same_bits_for_any_number_of_threads(op_type, make_node, rng):
    case = Case((33, 24, 16, 16), rng)
    inputs = case.forward_inputs()
    if op_type == "BatchNormGrad":
        inputs = (case.dy, case.x, case.scale, case.mean, case.var, case.count)
    expected = None
    for threads in (1, 2, 3):
        outputs = [
            o.tobytes() for o in make_node(op_type, inputs, threads=threads, **case.attributes)(*inputs)
        ]
        expected = expected or outputs
        assert outputs == expected


def test_wrong_inputs_are_errors_and_the_session_survives(make_node, run_op, rng):
    case = Case((1, 3, 1, 1), rng)
    node = make_node("BatchNorm", case.forward_inputs(), **case.attributes)
    with pytest.raises(Exception, match="two values per channel or more, there are 1"):
        node(*case.forward_inputs())
    two = (*case.forward_inputs()[:-1], np.array([2]))
    assert node(*two)[0].shape == case.x.shape
    with pytest.raises(Exception, match=r"scale has shape \[2\], expected \[3\]"):
        node(case.x, case.scale[:2], *two[2:])
    with pytest.raises(Exception, match="count is 17, which does not make 1 blocks"):
        node(*two[:-1], np.array([17]))
    inputs = (case.x[:, :, 1:], case.x, case.scale, case.mean, case.var, np.array([2]))
    with pytest.raises(Exception, match=r"dy has shape .*, expected \[1, 4, 2, 2, 16\]"):
        run_op("BatchNormGrad", *inputs, **case.attributes)
    with pytest.raises(Exception, match="attribute training is 2, must be 0 to 1"):
        run_op("BatchNorm", *case.forward_inputs(), **(case.attributes | {"training": 2}))
    with pytest.raises(Exception, match="float attribute epsilon is missing"):
        run_op("BatchNorm", *case.forward_inputs(), training=1, in_halo=1, out_halo=1, grad_halo=1)
