"""Pooling and its gradients against the reference and torch."""

import numpy as np
import pytest

from edge_client.kernels import reference, reference_pool

# examples, channels, height, width, kernel_h, kernel_w, stride, pad, in_halo, out_halo
GEOMETRIES = {
    "2x2": (16, 3, 8, 6, 2, 2, 2, 0, 0, 1),
    "2x2 odd": (7, 2, 7, 5, 2, 2, 2, 0, 1, 0),
    "3x3 overlapping": (33, 2, 9, 8, 3, 3, 2, 1, 1, 1),
    "3x3 stride 1": (1, 4, 5, 5, 3, 3, 1, 1, 2, 2),
    "oblong": (3, 2, 6, 9, 1, 3, 2, 0, 0, 0),
    "whole map": (17, 2, 4, 4, 4, 4, 1, 0, 1, 0),
    "5x5 pad 2": (2, 1, 6, 7, 5, 5, 3, 2, 0, 1),
    "gap": (5, 2, 7, 7, 1, 1, 3, 0, 0, 0),
}


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


class Case:
    def __init__(self, geometry, rng):
        n, c, h, w, kh, kw, stride, pad, in_halo, out_halo = geometry
        self.n = n
        self.attributes = {
            "kernel_h": kh,
            "kernel_w": kw,
            "stride": stride,
            "pad": pad,
            "in_halo": in_halo,
            "out_halo": out_halo,
            "in_height": h,
            "in_width": w,
        }
        # All negative: a kernel that read the halo, or took padding for zero, would find its zero.
        # In steps of a half, so that windows often have several maxima.
        self.maps = (-1 - np.round(4 * rng.random((n, c, h, w))) / 2).astype(np.float32)
        self.x = reference.blocked(self.maps, in_halo)
        out_h, out_w = (h + 2 * pad - kh) // stride + 1, (w + 2 * pad - kw) // stride + 1
        self.d_maps = normal(rng, n, c, out_h, out_w)
        self.dy = reference.blocked(self.d_maps, out_halo)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_max_pool_agrees_with_the_reference_and_torch(name, run_op, import_torch, rng, assert_halo_is_zero):
    case = Case(GEOMETRIES[name], rng)
    attributes, n = case.attributes, case.n
    y, argmax = run_op("MaxPool", case.x, **attributes)
    expected_y, expected_argmax = reference_pool.max_pool(case.x, **attributes)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(argmax, expected_argmax)
    assert_halo_is_zero(y, attributes["out_halo"])
    (dx,) = run_op("MaxPoolGrad", case.dy, argmax, **attributes)
    np.testing.assert_allclose(
        dx, reference_pool.max_pool_grad(case.dy, argmax, **attributes), rtol=1e-6, atol=1e-6
    )
    assert_halo_is_zero(dx, attributes["in_halo"])
    np.testing.assert_array_equal(reference.examples(dx, attributes["in_halo"])[n:], 0)

    torch = import_torch()
    x = torch.tensor(case.maps, requires_grad=True)
    window = (attributes["kernel_h"], attributes["kernel_w"])
    pad = attributes["pad"]
    ty = torch.nn.functional.max_pool2d(x, window, attributes["stride"], pad)
    ty.backward(torch.tensor(case.d_maps))
    np.testing.assert_array_equal(reference.examples(y, attributes["out_halo"])[:n], ty.detach().numpy())
    actual = reference.examples(dx, attributes["in_halo"])[:n]
    np.testing.assert_allclose(actual, x.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_max_pool_treats_nan_and_infinity_as_torch_does(run_op, import_torch):
    maps = np.full((1, 1, 4, 8), -np.inf, np.float32)
    maps[0, 0, :2, :2] = [[1, np.nan], [2, np.nan]]
    maps[0, 0, :2, 2:4] = [[np.nan, 5], [6, 7]]
    maps[0, 0, :2, 4:6] = [[np.inf, np.inf], [1, 2]]
    attributes = {"kernel_h": 2, "kernel_w": 2, "stride": 2, "pad": 0, "in_halo": 0, "out_halo": 0}
    attributes |= {"in_height": 4, "in_width": 8}
    x = reference.blocked(maps, 0)
    y, argmax = run_op("MaxPool", x, **attributes)
    for actual, expected in zip((y, argmax), reference_pool.max_pool(x, **attributes), strict=True):
        np.testing.assert_array_equal(actual, expected)

    torch = import_torch()
    ty, index = torch.nn.functional.max_pool2d(torch.tensor(maps), 2, 2, return_indices=True)
    np.testing.assert_array_equal(y[0, :, :, :, 0], ty[0].numpy())
    # torch counts pixels of the map, we count pixels of the window.
    rows, columns = np.indices((2, 4))
    place = argmax[0, 0, :, :, 0].astype(int)
    np.testing.assert_array_equal((2 * rows + place // 2) * 8 + 2 * columns + place % 2, index[0, 0].numpy())


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_average_pool_agrees_with_the_reference_and_torch(
    name, count_include_pad, run_op, import_torch, rng, assert_halo_is_zero
):
    case = Case(GEOMETRIES[name], rng)
    n, pooling = case.n, case.attributes
    attributes = pooling | {"count_include_pad": count_include_pad}
    (y,) = run_op("AveragePool", case.x, **attributes)
    np.testing.assert_allclose(y, reference_pool.average_pool(case.x, **attributes), rtol=1e-5, atol=1e-6)
    assert_halo_is_zero(y, pooling["out_halo"])
    (dx,) = run_op("AveragePoolGrad", case.dy, **attributes)
    np.testing.assert_allclose(
        dx, reference_pool.average_pool_grad(case.dy, **attributes), rtol=1e-5, atol=1e-6
    )
    assert_halo_is_zero(dx, pooling["in_halo"])
    np.testing.assert_array_equal(reference.examples(dx, pooling["in_halo"])[n:], 0)

    torch = import_torch()
    x = torch.tensor(case.maps, requires_grad=True)
    window = (pooling["kernel_h"], pooling["kernel_w"])
    ty = torch.nn.functional.avg_pool2d(
        x, window, pooling["stride"], pooling["pad"], count_include_pad=bool(count_include_pad)
    )
    ty.backward(torch.tensor(case.d_maps))
    actual_y = reference.examples(y, pooling["out_halo"])[:n]
    np.testing.assert_allclose(actual_y, ty.detach().numpy(), rtol=1e-5, atol=1e-6)
    actual = reference.examples(dx, pooling["in_halo"])[:n]
    np.testing.assert_allclose(actual, x.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 7, 16, 33])
def test_global_average_pool_is_a_mean_and_shares_its_gradient(n, halo, run_op, rng, assert_halo_is_zero):
    maps = normal(rng, n, 3, 5, 4)
    attributes = {"in_halo": halo, "in_height": 5, "in_width": 4}
    (y,) = run_op("GlobalAveragePool", reference.blocked(maps, halo), **attributes)
    assert y.shape == (-(-n // 16), 3, 1, 1, 16)
    np.testing.assert_allclose(reference.examples(y, 0)[:n, :, 0, 0], maps.mean(axis=(2, 3)), 1e-5, 1e-6)
    expected = reference_pool.global_average_pool(reference.blocked(maps, halo), **attributes)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    (dx,) = run_op("GlobalAveragePoolGrad", y, **attributes)
    shared = np.broadcast_to(maps.mean(axis=(2, 3), keepdims=True) / 20, maps.shape)  # 5 * 4 pixels
    np.testing.assert_allclose(dx, reference.blocked(shared, halo), rtol=1e-4, atol=1e-7)
    expected = reference_pool.global_average_pool_grad(y, **attributes)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-7)
    assert_halo_is_zero(dx, halo)


def test_wrong_shapes_and_attributes_are_errors(run_op, rng):
    case = Case(GEOMETRIES["3x3 overlapping"], rng)
    attributes = case.attributes

    def fails(message, op_type, *inputs, **changed):
        with pytest.raises(Exception, match=f"sparsefleet {op_type}: .*{message}"):
            run_op(op_type, *inputs, **(attributes | changed))

    fails(r"x has shape .*, expected \[3, 3, 11, 9, 16\]", "MaxPool", case.x, in_height=10)
    fails("pad must be at most half of the kernel", "MaxPool", case.x, pad=2)
    fails("the kernel is larger than the map", "MaxPool", case.x, kernel_h=12)
    fails(
        "more than 256 pixels",
        "MaxPool",
        np.zeros((1, 1, 32, 32, 16), np.float32),
        kernel_h=17,
        kernel_w=16,
        in_height=30,
        in_width=30,
    )
    fails(r"x has shape .*, expected", "AveragePool", case.x, in_width=9, count_include_pad=0)
    fails("count_include_pad is 2", "AveragePool", case.x, count_include_pad=2)
    fails("integer attribute count_include_pad is missing", "AveragePool", case.x)
    argmax = np.zeros((3, 2, 5, 4, 16), np.uint8)
    fails(r"argmax has shape .*, expected \[3, 2, 5, 4, 16\]", "MaxPoolGrad", case.dy, argmax[:, :, 1:])
    fails(r"dy has shape .*, expected \[3, 3, 6, 5, 16\]", "MaxPoolGrad", case.dy[:, :, 1:], argmax)
    with pytest.raises(Exception, match=r"x has shape .*, expected \[3, 3, 11, 9, 16\]"):
        run_op("GlobalAveragePool", case.x, in_halo=1, in_height=10, in_width=8)
    with pytest.raises(Exception, match=r"dy has shape .*, expected \[B, F, 1, 1, 16\]"):
        run_op("GlobalAveragePoolGrad", case.x, in_halo=1, in_height=10, in_width=8)
