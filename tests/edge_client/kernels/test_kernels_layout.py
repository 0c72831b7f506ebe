"""Pack, Unpack, Flatten, Relu, Add: the ops that move or mask values must do so exactly."""

import numpy as np
import pytest

from edge_client.kernels import reference

BATCHES = (1, 7, 16, 33)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("n", BATCHES)
def test_pack_puts_every_example_into_its_lane(n, halo, run_op, rng):
    x = normal(rng, n, 3, 5, 4)
    y, count = run_op("Pack", x, out_halo=halo)
    expected = np.zeros((-(-n // 16), 3 + (halo > 0), 5 + halo, 4 + halo, 16), np.float32)
    for example, channel, row, column in np.ndindex(x.shape):
        place = (example // 16, channel, row + halo, column + halo, example % 16)
        expected[place] = x[example, channel, row, column]
    np.testing.assert_array_equal(y, expected)  # zeros in halo and padding lanes included
    np.testing.assert_array_equal(y, reference.pack(x, out_halo=halo)[0])
    assert count.tolist() == [n]


@pytest.mark.parametrize("n", BATCHES)
def test_vectors_survive_pack_and_unpack(n, run_op, rng):
    x = normal(rng, n, 37)
    y, count = run_op("Pack", x, out_halo=0)
    np.testing.assert_array_equal(y, reference.pack(x, out_halo=0)[0])
    (back,) = run_op("Unpack", y, count)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(reference.unpack(y, count), x)


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("n", BATCHES)
def test_maps_and_tokens_survive_the_conversions_at_the_border(n, halo, run_op, rng):
    """Pack and Unpack undo each other, and each is the other's gradient."""
    for x, out_halo in ((normal(rng, n, 3, 5, 4), halo), (normal(rng, n, 9, 6), 0)):
        rank = x.ndim
        y, count = run_op("Pack", x, out_halo=out_halo, rank=rank)
        np.testing.assert_array_equal(y, reference.pack(x, out_halo=out_halo)[0])
        np.testing.assert_array_equal(run_op("UnpackGrad", x, in_halo=out_halo, rank=rank)[0], y)
        y[-1, ..., (n - 1) % 16 + 1 :] = np.nan  # What stands in padding lanes goes nowhere.
        np.testing.assert_array_equal(run_op("Unpack", y, count, in_halo=out_halo, rank=rank)[0], x)
        np.testing.assert_array_equal(run_op("PackGrad", y, count, out_halo=out_halo, rank=rank)[0], x)
        np.testing.assert_array_equal(reference.unpack(y, count, in_halo=out_halo, rank=rank), x)
    tokens = reference.pack(x, out_halo=0)[0]
    np.testing.assert_array_equal(tokens[0, 4, 0, 7, 0], x[0, 7, 4])  # Token 7, feature 4.


@pytest.mark.parametrize("halo", [0, 1])
def test_pixels_become_tokens_and_their_gradient_goes_back(halo, run_op, rng):
    maps = normal(rng, 7, 3, 5, 4)
    attributes = {"channels": 3, "in_halo": halo, "in_height": 5, "in_width": 4, "tokens": 1}
    x = reference.blocked(maps, halo)
    (y,) = run_op("Flatten", x, **attributes)
    np.testing.assert_array_equal(y, reference.flatten(x, **attributes))
    tokens = maps.reshape(7, 3, 20).transpose(0, 2, 1)
    np.testing.assert_array_equal(reference.unpack(y, np.array([7]), rank=3), tokens)
    (dx,) = run_op("FlattenGrad", y, **attributes)
    np.testing.assert_array_equal(dx, x)


@pytest.mark.parametrize("n", BATCHES)
def test_unpack_grad_writes_zeros_into_padding_lanes(n, run_op, rng):
    dy = normal(rng, n, 10)
    (dx,) = run_op("UnpackGrad", dy)
    np.testing.assert_array_equal(dx, reference.unpack_grad(dy))
    np.testing.assert_array_equal(reference.examples(dx, 0)[n:], 0)


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("n", BATCHES)
def test_flatten_orders_by_channel_row_column_and_its_gradient_goes_back(n, halo, run_op, rng):
    maps = normal(rng, n, 3, 5, 4)
    attributes = {"channels": 3, "in_halo": halo, "in_height": 5, "in_width": 4}
    x = reference.blocked(maps, halo)
    (y,) = run_op("Flatten", x, **attributes)
    np.testing.assert_array_equal(reference.examples(y, 0)[:n, :, 0, 0], maps.reshape(n, -1))
    np.testing.assert_array_equal(y, reference.flatten(x, **attributes))
    (dx,) = run_op("FlattenGrad", y, **attributes)
    np.testing.assert_array_equal(dx, x)
    np.testing.assert_array_equal(reference.flatten_grad(y, **attributes), x)


def test_relu_and_its_gradient_pass_nan_through_as_torch_does(run_op, import_torch, rng):
    x = reference.blocked(normal(rng, 33, 30, 9, 9), 1)  # more than one piece of work
    x[0, 0, 1, 1, :4] = [np.nan, np.inf, -np.inf, 0.0]
    dy = reference.blocked(normal(rng, 33, 30, 9, 9), 1)
    (y,) = run_op("Relu", x)
    np.testing.assert_array_equal(y, reference.relu(x))
    (dx,) = run_op("ReluGrad", dy, y)
    np.testing.assert_array_equal(dx, reference.relu_grad(dy, y))

    torch = import_torch()
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.relu(tx)
    ty.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, ty.detach().numpy())
    np.testing.assert_array_equal(dx, tx.grad.numpy())


def test_add_adds(run_op, rng):
    a, b = (reference.blocked(normal(rng, 33, 30, 9, 9), 1) for _ in range(2))
    (y,) = run_op("Add", a, b)
    np.testing.assert_array_equal(y, a + b)
    np.testing.assert_array_equal(y, reference.add(a, b))


def test_an_empty_batch_passes(run_op):
    y, count = run_op("Pack", np.zeros((0, 3, 4, 4), np.float32), out_halo=1)
    assert y.shape == (0, 4, 5, 5, 16)
    assert count.tolist() == [0]
    assert run_op("Relu", y)[0].shape == y.shape
    (back,) = run_op("Unpack", np.zeros((0, 5, 1, 1, 16), np.float32), count)
    assert back.shape == (0, 5)


def test_wrong_shapes_are_errors(run_op, rng):
    x = reference.blocked(normal(rng, 16, 3, 4, 4), 1)
    vectors = reference.blocked(normal(rng, 16, 6, 1, 1), 0)
    flat = {"channels": 3, "in_halo": 1, "in_height": 4, "in_width": 4}
    for message, op_type, inputs, attributes in [
        (r"expected \[N, C, H, W\], \[N, T, C\] or \[N, F\]", "Pack", [normal(rng, 3)], {"out_halo": 0}),
        ("which is empty", "Pack", [normal(rng, 3, 0, 5, 5)], {"out_halo": 0}),
        ("the halo must be 0 for tokens and vectors", "Pack", [normal(rng, 3, 5)], {"out_halo": 1}),
        ("out_halo is -1, must be 0 to", "Pack", [normal(rng, 3, 5, 2, 2)], {"out_halo": -1}),
        # Where the product of the dimensions is 0 in 64 bits, and where it is large.
        (r"2\^31 floats or more", "Pack", [normal(rng, 3, 5, 2, 2)], {"out_halo": 2**31 - 2}),
        (r"2\^31 floats or more", "Pack", [normal(rng, 3, 5, 2, 2)], {"out_halo": 2**20}),
        ("which is no vector", "Unpack", [vectors.reshape(1, 3, 1, 2, 16), np.array([16])], {}),
        ("which is no row of tokens", "Unpack", [x, np.array([16])], {"rank": 3}),
        ("attribute rank is 5, must be 2 to 4", "Unpack", [x, np.array([16])], {"rank": 5}),
        ("count is 17, which does not make 1 blocks of 16", "Unpack", [vectors, np.array([17])], {}),
        ("count is 0, which does not make 1 blocks of 16", "Unpack", [vectors, np.array([0])], {}),
        ("count is -5, which", "Unpack", [vectors, np.array([-5])], {}),
        (r"count has shape \[2\]", "Unpack", [vectors, np.array([16, 16])], {}),
        (r"expected \[N, C, H, W\], \[N, T, C\] or \[N, F\]", "UnpackGrad", [x], {}),
        (r"x has shape .*, expected \[1, 4, 6, 5, 16\]", "Flatten", [x], flat | {"in_height": 5}),
        (r"dy has shape .*, expected \[1, 48, 1, 1, 16\]", "FlattenGrad", [vectors], flat),
        (r"y has shape .*, expected", "ReluGrad", [x, vectors], {}),
        (r"b has shape .*, expected", "Add", [x, vectors], {}),
        (r"x has shape \[4\], expected", "Relu", [normal(rng, 4)], {}),
    ]:
        with pytest.raises(Exception, match=f"sparsefleet {op_type}: .*{message}"):
            run_op(op_type, *inputs, **attributes)
