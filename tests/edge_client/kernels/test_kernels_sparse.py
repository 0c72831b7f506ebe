"""SparseConv, SparseGemm and their gradients against the reference and against torch."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge_client import break_even
from edge_client.kernels import library_path, reference

# name: examples, channels, height, width, out_channels, kernel_h, kernel_w, stride, pad, in_halo, out_halo and,
# where it is not 1, group
GEOMETRIES = {
    "3x3": (16, 5, 8, 8, 9, 3, 3, 1, 1, 1, 1),
    "3x3 strided": (7, 4, 9, 7, 6, 3, 3, 2, 1, 1, 1),
    "3x3 strided even": (16, 4, 8, 6, 6, 3, 3, 2, 1, 2, 2),
    "3x3 unpadded": (33, 3, 7, 6, 4, 3, 3, 1, 0, 0, 2),
    "5x5": (1, 2, 11, 9, 3, 5, 5, 1, 2, 2, 2),
    "5x5 pad 1": (7, 2, 6, 5, 3, 5, 5, 1, 1, 1, 3),
    "1x1": (33, 6, 5, 3, 7, 1, 1, 1, 0, 0, 0),
    "1x1 strided": (16, 6, 5, 8, 7, 1, 1, 2, 0, 1, 0),
    "1x1 padded": (3, 2, 4, 4, 3, 1, 1, 1, 1, 1, 0),
    "3x3 stride 3": (17, 2, 10, 8, 3, 3, 3, 3, 1, 1, 1),
    "oblong kernel": (2, 3, 6, 9, 4, 1, 5, 1, 2, 3, 2),
    "stride beyond kernel": (5, 2, 7, 7, 3, 1, 1, 3, 0, 0, 0),
    "one pixel": (33, 8, 1, 1, 12, 3, 3, 1, 1, 1, 1),
    "wide": (3, 2, 3, 37, 2, 3, 3, 1, 1, 1, 1),
    "many channels": (16, 40, 4, 4, 24, 3, 3, 1, 1, 1, 1),
    "channels in turns": (16, 23, 5, 10, 9, 3, 3, 1, 1, 1, 1),
    "channels in turns, strided": (7, 14, 4, 12, 13, 3, 3, 2, 1, 1, 1),
    "channels in turns, two groups": (33, 14, 5, 10, 18, 3, 3, 1, 1, 1, 1, 2),
    "vgg stem": (16, 3, 16, 16, 8, 3, 3, 1, 1, 1, 1),
    "depthwise": (33, 6, 8, 7, 6, 3, 3, 1, 1, 1, 1, 6),
    "depthwise strided": (16, 6, 9, 8, 6, 3, 3, 2, 1, 1, 1, 6),
    "depthwise, two outputs each": (7, 5, 6, 6, 10, 3, 3, 1, 1, 1, 1, 5),
    "two groups": (17, 8, 5, 6, 6, 3, 3, 1, 1, 1, 1, 2),
    "grouped 1x1 strided": (3, 12, 6, 5, 8, 1, 1, 2, 0, 0, 0, 4),
    "patches": (16, 3, 16, 16, 12, 4, 4, 4, 0, 0, 0),
    "winograd": (33, 16, 8, 8, 16, 3, 3, 1, 1, 1, 1),
    "winograd ragged": (7, 18, 9, 14, 35, 3, 3, 1, 1, 2, 1),
    "winograd unpadded": (17, 20, 9, 8, 16, 3, 3, 1, 0, 0, 2),
    "winograd padded by 2": (16, 16, 6, 6, 17, 3, 3, 1, 2, 2, 0),
    "winograd, many tiles": (16, 17, 30, 13, 16, 3, 3, 1, 1, 1, 1),
    "winograd, many channels": (3, 16, 5, 7, 150, 3, 3, 1, 1, 1, 2),
}
DENSITIES = (0.0, 0.1, 1.0)


@pytest.fixture(
    autouse=True,
    params=[(break_even.NEVER, break_even.NEVER), (1e-9, break_even.NEVER), (break_even.NEVER, 1e-9)],
    ids=["sparse", "dense", "winograd"],
)
def _kernels(request):
    """Everything here holds for the sparse kernels and for the dense ones, at any density."""
    break_even.use(library_path(), *request.param)
    yield
    break_even.use(library_path(), 0.0, 0.0)


def a_mask(rng: np.random.Generator, size: int, density: float) -> np.ndarray[Any, Any]:
    return np.flatnonzero(rng.random(size) < density).astype(np.int32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape).astype(np.float32)


class Case:
    """Random tensors for a geometry; blocked ones with garbage where garbage is allowed."""

    def __init__(self, geometry: tuple[int, ...], density: float, rng: np.random.Generator) -> None:
        n, c, h, w, k, kh, kw, stride, pad, in_halo, out_halo, group = (*geometry, 1)[:12]
        self.attributes = {
            "out_channels": k,
            "kernel_h": kh,
            "kernel_w": kw,
            "stride": stride,
            "pad": pad,
            "in_halo": in_halo,
            "out_halo": out_halo,
            **({"group": group} if group > 1 else {}),
        }
        self.num_examples = n
        self.shape = (k, c // group, kh, kw)
        size = int(np.prod(self.shape))
        self.indices = a_mask(rng, size, density)
        if 0 < density < 1 and k > 2:  # an output channel without weights
            self.indices = self.indices[self.indices // (c // group * kh * kw) != 1]
        self.values = normal(rng, len(self.indices))
        self.bias = normal(rng, k)
        lanes = -(-n // 16) * 16
        self.maps = normal(rng, lanes, c, h, w)  # padding lanes hold garbage
        self.x = reference.blocked(self.maps, in_halo)
        self.out_h, self.out_w = (h + 2 * pad - kh) // stride + 1, (w + 2 * pad - kw) // stride + 1
        self.d_maps = normal(rng, n, k, self.out_h, self.out_w)  # padding lanes hold zeros
        self.dy = reference.blocked(self.d_maps, out_halo)


def close(actual: Any, expected: Any) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv_agrees_with_the_reference(name, density, run_op, rng, assert_halo_is_zero):
    case = Case(GEOMETRIES[name], density, rng)
    for bias in (None, case.bias):
        inputs = (case.x, case.values, bias, case.indices)
        (y,) = run_op("SparseConv", *inputs, **case.attributes)
        close(y, reference.sparse_conv(*inputs, **case.attributes))
        assert_halo_is_zero(y, case.attributes["out_halo"])


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv_gradients_agree_with_the_reference(name, density, run_op, rng, assert_halo_is_zero):
    case = Case(GEOMETRIES[name], density, rng)
    inputs = (case.dy, case.x, case.values, case.indices)
    actual = run_op("SparseConvGrad", *inputs, **case.attributes)
    for a, b in zip(actual, reference.sparse_conv_grad(*inputs, **case.attributes), strict=True):
        assert a.shape == b.shape
        close(a, b)
    assert_halo_is_zero(actual[0], case.attributes["in_halo"])
    padding_lanes = reference.examples(actual[0], case.attributes["in_halo"])[case.num_examples :]
    np.testing.assert_array_equal(padding_lanes, 0)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", ["1x1 strided", "stride beyond kernel", "grouped 1x1 strided"])
def test_a_strided_input_gradient_may_leave_out_the_zeros(name, density, run_op, rng):
    case = Case(GEOMETRIES[name], density, rng)
    stride = case.attributes["stride"]
    inputs = (case.dy, case.x, case.values, case.indices)
    actual = run_op("SparseConvGrad", *inputs, **case.attributes, dx_step=stride)
    wanted = reference.sparse_conv_grad(*inputs, **case.attributes, dx_step=stride)
    for a, b in zip(actual, wanted, strict=True):
        assert a.shape == b.shape
        close(a, b)
    full = reference.examples(
        run_op("SparseConvGrad", *inputs, **case.attributes)[0], case.attributes["in_halo"]
    )
    close(reference.examples(actual[0], 0), full[:, :, ::stride, ::stride])
    full[:, :, ::stride, ::stride] = 0
    assert not full.any()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv_agrees_with_torch(name, run_op, import_torch, rng):
    torch = import_torch()
    case = Case(GEOMETRIES[name], 0.3, rng)
    attributes, n = case.attributes, case.num_examples
    x = torch.tensor(case.maps[:n], requires_grad=True)
    dense = torch.tensor(
        reference.dense_weight(case.values, case.indices, case.shape), dtype=torch.float32, requires_grad=True
    )
    bias = torch.tensor(case.bias, requires_grad=True)
    y = torch.nn.functional.conv2d(
        x,
        dense,
        bias,
        stride=attributes["stride"],
        padding=attributes["pad"],
        groups=attributes.get("group", 1),
    )
    y.backward(torch.tensor(case.d_maps))

    (actual,) = run_op("SparseConv", case.x, case.values, case.bias, case.indices, **attributes)
    close(reference.examples(actual, attributes["out_halo"])[:n], y.detach().numpy())
    dx, d_values, d_bias = run_op("SparseConvGrad", case.dy, case.x, case.values, case.indices, **attributes)
    close(reference.examples(dx, attributes["in_halo"])[:n], x.grad.numpy())
    close(d_values, dense.grad.numpy().reshape(-1)[case.indices])
    close(d_bias, bias.grad.numpy())


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("n", "f", "m"), [(1, 5, 3), (7, 33, 17), (16, 64, 40), (33, 30, 50), (150, 9, 20)])
def test_gemm_agrees_with_the_reference_and_torch(n, f, m, density, run_op, import_torch, rng):
    indices = a_mask(rng, m * f, density)
    values, bias = normal(rng, len(indices)), normal(rng, m)
    x = reference.blocked(normal(rng, -(-n // 16) * 16, f, 1, 1), 0)
    dy = reference.unpack_grad(normal(rng, n, m))
    for optional in (None, bias):
        inputs = (x, values, optional, indices)
        (y,) = run_op("SparseGemm", *inputs, out_features=m)
        close(y, reference.sparse_gemm(*inputs, out_features=m))
    inputs = (dy, x, values, indices)
    actual = run_op("SparseGemmGrad", *inputs, out_features=m)
    for a, b in zip(actual, reference.sparse_gemm_grad(*inputs, out_features=m), strict=True):
        assert a.shape == b.shape
        close(a, b)

    torch = import_torch()
    tx = torch.tensor(reference.examples(x, 0)[:n, :, 0, 0], dtype=torch.float32, requires_grad=True)
    weight = torch.tensor(
        reference.dense_weight(values, indices, (m, f)), dtype=torch.float32, requires_grad=True
    )
    tb = torch.tensor(bias, requires_grad=True)
    ty = torch.nn.functional.linear(tx, weight, tb)
    ty.backward(torch.tensor(reference.examples(dy, 0)[:n, :, 0, 0], dtype=torch.float32))
    close(reference.examples(y, 0)[:n, :, 0, 0], ty.detach().numpy())
    close(reference.examples(actual[0], 0)[:n, :, 0, 0], tx.grad.numpy())
    close(actual[1], weight.grad.numpy().reshape(-1)[indices])
    close(actual[2], tb.grad.numpy())


@pytest.mark.parametrize("wanted", [["dx"], ["dvalues"], ["dbias"], ["dvalues", "dbias"]])
@pytest.mark.parametrize("geometry", ["3x3", "winograd"])
def test_gradients_that_nobody_wants_are_left_out(geometry, wanted, run_op, rng):
    case = Case(GEOMETRIES[geometry], 0.1, rng)
    inputs = (case.dy, case.x, case.values, case.indices)
    names = ["dx", "dvalues", "dbias"]
    expected = dict(zip(names, reference.sparse_conv_grad(*inputs, **case.attributes), strict=True))
    actual = run_op("SparseConvGrad", *inputs, wanted=wanted, **case.attributes)
    for name, value in zip(wanted, actual, strict=True):
        close(value, expected[name])


def test_a_first_layer_needs_no_halo_around_dy(run_op, rng):
    n, c, h, w, k, kh, kw, stride, pad, in_halo, _ = GEOMETRIES["3x3"]
    case = Case((n, c, h, w, k, kh, kw, stride, pad, in_halo, 0), 0.5, rng)
    inputs = (case.dy, case.x, case.values, case.indices)
    _, expected, _ = reference.sparse_conv_grad(*inputs, **case.attributes)
    (d_values,) = run_op("SparseConvGrad", *inputs, wanted=["dvalues"], **case.attributes)
    close(d_values, expected)


def test_a_new_mask_or_shape_replaces_the_plan(make_node, rng):
    """One session, several masks of equal and of other length, then the first one again."""
    case = Case(GEOMETRIES["3x3"], 0.1, rng)
    forward = make_node("SparseConv", (case.x, case.values, None, case.indices), **case.attributes)
    backward = make_node("SparseConvGrad", (case.dy, case.x, case.values, case.indices), **case.attributes)
    size = int(np.prod(case.shape))
    moved = np.sort(rng.choice(size, len(case.indices), replace=False)).astype(np.int32)
    masks = (case.indices, moved, a_mask(rng, size, 0.5), case.indices[:0], case.indices)
    narrow = [np.ascontiguousarray(t[:, :, :, :-2]) for t in (case.x, case.dy)]
    # Masks change within a shape: `moved` differs from the plan before it in nothing but its indices.
    for x, dy in ((case.x, case.dy), narrow):
        for indices in masks:
            values = normal(rng, len(indices))
            inputs = (x, values, None, indices)
            close(forward(*inputs)[0], reference.sparse_conv(*inputs, **case.attributes))
            expected = reference.sparse_conv_grad(dy, x, values, indices, **case.attributes)
            for a, b in zip(backward(dy, x, values, indices), expected, strict=True):
                close(a, b)


def test_calls_at_the_same_time_with_other_masks_do_not_disturb_each_other(make_node, rng):
    """The runtime may call one node from several threads; the plan they share is replaced under them.

    A wide layer and one example: making the plan takes longer than using it, so the calls do meet.
    """
    dy = reference.unpack_grad(normal(rng, 1, 500))
    x = reference.unpack_grad(normal(rng, 1, 600))
    calls = []
    for _ in range(4):
        indices = a_mask(rng, 500 * 600, 0.2)
        calls.append((dy, x, normal(rng, len(indices)), indices))
    node = make_node("SparseGemmGrad", calls[0], out_features=500)
    alone = [[output.tobytes() for output in node(*call)] for call in calls]
    with ThreadPoolExecutor(max_workers=4) as pool:
        together = list(pool.map(lambda i: node(*calls[i % 4]), range(200)))
    for i, outputs in enumerate(together):
        assert [output.tobytes() for output in outputs] == alone[i % 4]


@pytest.mark.parametrize("geometry", ["3x3", "winograd"])
def test_an_empty_batch_gives_empty_maps_and_zero_gradients(geometry, run_op, rng):
    case = Case(GEOMETRIES[geometry], 0.5, rng)
    (y,) = run_op("SparseConv", case.x[:0], case.values, None, case.indices, **case.attributes)
    assert y.shape == (0, *case.dy.shape[1:])
    dx, d_values, d_bias = run_op(
        "SparseConvGrad", case.dy[:0], case.x[:0], case.values, case.indices, **case.attributes
    )
    assert dx.shape == (0, *case.x.shape[1:])
    np.testing.assert_array_equal(d_values, 0)
    np.testing.assert_array_equal(d_bias, 0)


@pytest.mark.parametrize("op_type", ["SparseConv", "SparseConvGrad", "SparseGemm", "SparseGemmGrad"])
def test_results_are_the_same_bits_for_any_number_of_threads(op_type, make_node, rng):
    # Large enough that the pool shares the work out.
    if op_type.startswith("SparseConv"):
        case = Case((33, 24, 16, 16, 40, 3, 3, 1, 1, 1, 1), 0.2, rng)
        x, dy, values, indices, attributes = case.x, case.dy, case.values, case.indices, case.attributes
    else:
        x, dy = reference.blocked(normal(rng, 48, 300, 1, 1), 0), reference.unpack_grad(normal(rng, 33, 200))
        indices = a_mask(rng, 200 * 300, 0.2)
        values, attributes = normal(rng, len(indices)), {"out_features": 200}
    inputs = (dy, x, values, indices) if op_type.endswith("Grad") else (x, values, None, indices)
    expected = None
    for threads in (1, 2, 3):
        node = make_node(op_type, inputs, threads=threads, **attributes)
        for _ in range(2):
            outputs = [output.tobytes() for output in node(*inputs)]
            expected = expected or outputs
            assert outputs == expected


BAD_INDICES = {
    "out of range": ([0, 5, 405], r"indices\[2\] = 405 is out of range, the weight has 405 elements"),
    "negative": ([-1, 5, 404], r"indices\[0\] = -1 is out of range"),
    "unsorted": ([7, 5, 404], r"indices\[1\] = 5 does not exceed its predecessor 7"),
    "repeated": ([5, 5, 404], r"indices\[1\] = 5 does not exceed its predecessor 5"),
}


@pytest.mark.parametrize("name", BAD_INDICES)
@pytest.mark.parametrize("op_type", ["SparseConv", "SparseConvGrad"])
def test_bad_indices_are_an_error_and_the_session_survives(name, op_type, make_node, rng):
    bad, message = BAD_INDICES[name]
    case = Case(GEOMETRIES["3x3"], 0.0, rng)  # 9 * 5 * 3 * 3 = 405 weights
    values = normal(rng, 3)
    first = (case.dy, case.x, values) if op_type == "SparseConvGrad" else (case.x, values, case.bias)
    good = (*first, np.array([3, 100, 404], np.int32))
    node = make_node(op_type, good, **case.attributes)
    before = node(*good)
    with pytest.raises(Exception, match=rf"sparsefleet {op_type}(Bias)?: {message}"):
        node(*first, np.array(bad, np.int32))
    for a, b in zip(node(*good), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_shapes_and_attributes_are_errors(run_op, rng):
    case = Case(GEOMETRIES["3x3"], 0.1, rng)
    attributes, x, values, indices = case.attributes, case.x, case.values, case.indices

    def fails(message, *inputs, op_type="SparseConv", **changed):
        with pytest.raises(Exception, match=message):
            run_op(op_type, *inputs, **(attributes | changed))

    fails("indices has shape", x, values, None, indices[:-1])
    fails("values has shape", x, values[None], None, indices)
    fails(r"x has shape .*, expected \[B, C, H, W, 16\]", x[0], values, None, indices)
    fails(r"x has shape .*, expected \[B, C, H, W, 16\]", x[..., :8], values, None, indices)
    fails(r"bias has shape \[1\], expected \[9\]", x, values, case.bias[:1], indices)
    fails("in_halo is 0, less than pad 1", x, values, None, indices, in_halo=0)
    fails("too small for a halo of 9", x, values, None, indices, in_halo=9)
    fails("smaller than the kernel", x, values, None, indices, kernel_h=11, kernel_w=1)
    fails("attribute stride is 0, must be 1 to", x, values, None, indices, stride=0)
    fails("group is 3, which does not divide 5 input", x, values, None, indices, group=3)
    fails("attribute group is 0, must be 1 to", x, values, None, indices, group=0)
    too_far = np.array([81], np.int32)  # 9 output channels of one input channel each: 9 * 3 * 3 = 81 weights
    depthwise = reference.blocked(normal(rng, 16, 9, 8, 8), 1)
    fails("indices.0. = 81 is out of range, the weight has 81", depthwise, values[:1], None, too_far, group=9)
    fails(r"dy has shape .*, expected", case.dy[:, :, 1:], x, values, indices, op_type="SparseConvGrad")
    gradient = (case.dy, x, values, indices)
    fails("dx_step is 3, which needs a 1x1 kernel", *gradient, op_type="SparseConvGrad", dx_step=3, stride=3)
    fails("attribute dx_step is 0, must be 1 to", *gradient, op_type="SparseConvGrad", dx_step=0)
    dy = reference.blocked(case.d_maps, 0)
    fails(
        "out_halo is 0, the input gradient needs 1",
        dy,
        x,
        values,
        indices,
        op_type="SparseConvGrad",
        out_halo=0,
    )
    with pytest.raises(Exception, match="integer attribute stride is missing"):
        run_op(
            "SparseConv", x, values, None, indices, **{k: v for k, v in attributes.items() if k != "stride"}
        )
    vectors = reference.blocked(normal(rng, 16, 5, 1, 1), 0)
    with pytest.raises(Exception, match=r"indices\[0\] = 15 is out of range, the weight has 15 elements"):
        run_op("SparseGemm", vectors, values[:1], None, np.array([15], np.int32), out_features=3)
    with pytest.raises(Exception, match=r"x has shape .*, expected \[B, F, 1, 1, 16\]"):
        run_op("SparseGemm", x, values, None, indices, out_features=3)
    with pytest.raises(Exception, match=r"dy has shape .*, expected \[1, 4, 1, 1, 16\]"):
        run_op("SparseGemmGrad", vectors, vectors, values[:0], indices[:0], out_features=4)


def test_a_halo_that_nobody_reads_is_left_alone(run_op, rng):
    """The inside is the same; clearing is what a graph may leave out."""
    case = Case(GEOMETRIES["3x3"], 0.5, rng)
    inputs = case.x, case.values, None, case.indices
    (cleared,) = run_op("SparseConv", *inputs, **case.attributes)
    (left,) = run_op("SparseConv", *inputs, **case.attributes, clear_halo=0)
    halo = case.attributes["out_halo"]
    np.testing.assert_array_equal(reference.examples(left, halo), reference.examples(cleared, halo))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 20),
    group=st.sampled_from([1, 2, 3, 8]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_any_grouped_convolution_agrees_with_the_reference(
    n, group, inputs, outputs, side, kernel, stride, pad, density, threads, seed, run_op
):
    """`inputs` and `outputs` count the channels of one group."""
    rng = np.random.default_rng(seed)
    assume(all(side[i] + 2 * pad >= kernel[i] for i in (0, 1)))
    halo = pad + max(kernel)  # Enough for the gradient of any stride.
    sizes = (n, inputs * group, *side, outputs * group, *kernel, stride, pad, halo, halo + max(side), group)
    case = Case(sizes, density, rng)
    forward = (case.x, case.values, case.bias, case.indices)
    (y,) = run_op("SparseConv", *forward, threads=threads, **case.attributes)
    close(y, reference.sparse_conv(*forward, **case.attributes))
    backward = (case.dy, case.x, case.values, case.indices)
    actual = run_op("SparseConvGrad", *backward, threads=threads, **case.attributes)
    for a, b in zip(actual, reference.sparse_conv_grad(*backward, **case.attributes), strict=True):
        close(a, b)


@pytest.mark.parametrize("geometry", ["3x3", "one pixel", "many channels", "3x3 stride 3", "winograd"])
def test_a_plan_serves_fewer_blocks_and_is_made_anew_for_more(geometry, make_node, rng):
    """Batches of 64, 7, 64, 80 and 0 on one kernel instance, each against the reference."""
    _, *rest = GEOMETRIES[geometry]
    cases = {n: Case((n, *rest), 0.3, rng) for n in (64, 7, 80)}
    first = cases[64]

    def operands(case):
        return case.x, first.values, None, first.indices

    def gradient_operands(case):
        return case.dy, case.x, first.values, first.indices

    forward = make_node("SparseConv", operands(first), **first.attributes)
    backward = make_node("SparseConvGrad", gradient_operands(first), **first.attributes)
    for n in (64, 7, 64, 80):
        case = cases[n]
        (y,) = forward(*operands(case))
        np.testing.assert_allclose(
            y, reference.sparse_conv(*operands(case), **first.attributes), rtol=1e-4, atol=1e-4
        )
        expected = reference.sparse_conv_grad(*gradient_operands(case), **first.attributes)
        for a, b in zip(backward(*gradient_operands(case)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    (y,) = forward(first.x[:0], *operands(first)[1:])
    assert y.shape[0] == 0
