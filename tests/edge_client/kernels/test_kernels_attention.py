"""What transformers add: Attention, Gelu, LeakyRelu and AddWeight, against the reference and torch."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.kernels import reference, reference_tokens

# examples, heads, features of a head, tokens
SHAPES = [(1, 1, 1, 1), (7, 3, 4, 5), (16, 2, 8, 33), (33, 2, 3, 16), (17, 1, 64, 64)]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))


class Case:
    """Garbage in the padding lanes of the activations, zeros in those of the gradient."""

    def __init__(self, shape, rng):
        self.n, self.heads, features, self.tokens = shape
        channels, lanes = self.heads * features, -(-self.n // 16) * 16
        self.maps = 2 * normal(rng, lanes, 3 * channels, 1, self.tokens)
        self.maps[self.n :] *= 1e6
        self.qkv = reference.blocked(self.maps, 0)
        self.d_maps = normal(rng, self.n, channels, 1, self.tokens)
        self.dy = reference.blocked(self.d_maps, 0)


def check(case, run_op, threads=1):
    y, p = run_op("Attention", case.qkv, heads=case.heads, threads=threads)
    expected_y, expected_p = reference_tokens.attention(case.qkv, heads=case.heads)
    close(reference.examples(y, 0)[: case.n], reference.examples(expected_y, 0)[: case.n])
    is_valid = np.zeros(p.shape, bool)
    for example in range(case.n):
        is_valid[example // 16, ..., example % 16] = True
    close(p[is_valid], expected_p[is_valid])
    assert np.isfinite(y).all()
    assert np.isfinite(p).all()
    (dqkv,) = run_op("AttentionGrad", case.dy, case.qkv, p, heads=case.heads, threads=threads)
    close(dqkv, reference_tokens.attention_grad(case.dy, case.qkv, p, heads=case.heads))
    np.testing.assert_array_equal(reference.examples(dqkv, 0)[case.n :], 0)
    return y, dqkv


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_agrees_with_the_reference_and_torch(shape, run_op, import_torch, rng):
    case = Case(shape, rng)
    y, dqkv = check(case, run_op)

    torch = import_torch()
    n, heads, features, tokens = shape
    x = torch.tensor(case.maps[:n, :, 0], requires_grad=True)
    q, k, v = x.reshape(n, 3, heads, features, tokens).transpose(3, 4).unbind(1)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    expected = mixed.transpose(2, 3).reshape(n, heads * features, tokens)
    expected.backward(torch.tensor(case.d_maps[:, :, 0]))
    close(reference.examples(y, 0)[:n, :, 0], expected.detach().numpy())
    close(reference.examples(dqkv, 0)[:n, :, 0], x.grad.numpy())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 6), st.integers(1, 37)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_attention_of_any_shape_agrees_with_the_reference(shape, threads, seed, run_op):
    check(Case(shape, np.random.default_rng(seed)), run_op, threads)


def test_attention_is_the_same_bits_for_any_number_of_threads(make_node, rng):
    case = Case((33, 3, 16, 50), rng)
    probability = np.abs(normal(rng, 3, 3, 50, 50, 16))
    for op_type, inputs in (
        ("Attention", (case.qkv,)),
        ("AttentionGrad", (case.dy, case.qkv, probability)),
    ):
        expected = None
        for threads in (1, 2, 3):
            node = make_node(op_type, inputs, threads=threads, heads=3)
            outputs = [output.tobytes() for output in node(*inputs)]
            expected = expected or outputs
            assert outputs == expected


def test_one_large_score_does_not_overflow(run_op):
    """exp(1000) is infinite; after the largest score is subtracted it is exp(0)."""
    maps = np.zeros((16, 3, 1, 2), np.float32)
    maps[:, 0], maps[:, 1], maps[:, 2] = 1000.0, [1.0, 0.0], [5.0, 7.0]
    y, p = run_op("Attention", reference.blocked(maps, 0), heads=1)
    np.testing.assert_array_equal(p[0, 0, 0, 0], 1.0)  # Score 1000 beside score 0.
    np.testing.assert_array_equal(reference.examples(y, 0), 5.0)


@pytest.mark.parametrize("use_tanh", [0, 1])
def test_gelu_agrees_with_the_reference_and_torch(use_tanh, run_op, import_torch, rng):
    x = reference.blocked(4 * normal(rng, 33, 30, 9, 9), 1)
    x[0, 0, 1, 1, :8] = [0.0, -0.0, 1e30, -1e30, 40.0, -40.0, 1e-30, -6.0]
    dy = reference.blocked(normal(rng, 33, 30, 9, 9), 1)
    (y,) = run_op("Gelu", x, tanh=use_tanh)
    np.testing.assert_allclose(y, reference_tokens.gelu(x, tanh=use_tanh), rtol=1e-5, atol=2e-6)
    (dx,) = run_op("GeluGrad", dy, x, tanh=use_tanh)
    np.testing.assert_allclose(dx, reference_tokens.gelu_grad(dy, x, tanh=use_tanh), rtol=1e-5, atol=5e-6)
    np.testing.assert_array_equal(y[:, :, 0], 0)  # The halo.

    torch = import_torch()
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.gelu(tx, approximate="tanh" if use_tanh else "none")
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-5, atol=2e-6)
    finite = np.isfinite(tx.grad.numpy())  # torch's own is NaN at 1e30 with tanh.
    np.testing.assert_allclose(dx[finite], tx.grad.numpy()[finite], rtol=1e-4, atol=1e-5)


def test_gelu_by_hand(run_op):
    x = np.zeros((1, 1, 1, 1, 16), np.float32)
    x[..., 0], x[..., 1] = 1.0, -2.0
    (y,) = run_op("Gelu", x, tanh=0)
    phi = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (1.0, -2.0)]  # 0.841345, 0.022750
    np.testing.assert_allclose(y[0, 0, 0, 0, :2], [phi[0], -2 * phi[1]], rtol=2e-6)


def test_leaky_relu_agrees_with_the_reference_and_torch(run_op, import_torch, rng):
    x = reference.blocked(normal(rng, 33, 30, 9, 9), 1)
    x[0, 0, 1, 1, :4] = [np.nan, np.inf, -np.inf, 0.0]
    dy = reference.blocked(normal(rng, 33, 30, 9, 9), 1)
    (y,) = run_op("LeakyRelu", x, alpha=0.1)
    np.testing.assert_array_equal(y, reference_tokens.leaky_relu(x, alpha=0.1))
    (dx,) = run_op("LeakyReluGrad", dy, y, alpha=0.1)
    np.testing.assert_array_equal(dx, reference_tokens.leaky_relu_grad(dy, y, alpha=0.1))

    torch = import_torch()
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.leaky_relu(tx, 0.1)
    ty.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, ty.detach().numpy())
    np.testing.assert_array_equal(dx, tx.grad.numpy())


@pytest.mark.parametrize(
    ("size", "halo", "channels_last"), [((6, 1, 64), 0, 1), ((3, 5, 4), 2, 0), ((7, 1, 1), 0, 0)]
)
@pytest.mark.parametrize("n", [1, 7, 33])
def test_a_weight_is_added_to_every_example(n, size, halo, channels_last, run_op, rng, assert_halo_is_zero):
    maps, d_maps = normal(rng, n, *size), normal(rng, n, *size)
    weight = normal(rng, *size)
    given_weight = weight[:, 0].T[None].copy() if channels_last else weight[None]  # [1, T, C] or [1, C, H, W]
    attributes = {"halo": halo, "channels_last": channels_last}
    x, dy = reference.blocked(maps, halo), reference.blocked(d_maps, halo)
    (y,) = run_op("AddWeight", x, given_weight, **attributes)
    np.testing.assert_array_equal(y, reference_tokens.add_weight(x, given_weight, **attributes))
    np.testing.assert_array_equal(reference.examples(y, halo)[:n], maps + weight)
    assert_halo_is_zero(y, halo)
    (d_weight,) = run_op("AddWeightGrad", dy, given_weight, **attributes)
    close(d_weight, reference_tokens.add_weight_grad(dy, given_weight, **attributes))
    total = d_maps.astype(np.float64).sum(axis=0)
    close(d_weight, total[:, 0].T[None] if channels_last else total[None])


def test_wrong_inputs_are_errors(run_op, rng):
    case = Case((7, 2, 4, 5), rng)
    probability = normal(rng, 1, 2, 5, 5, 16)
    rows = reference.blocked(normal(rng, 7, 24, 2, 5), 0)
    weight = {"halo": 0, "channels_last": 0}
    for message, op_type, inputs, attributes in [
        ("24 channels, which are not 3 parts of 5 heads", "Attention", [case.qkv], {"heads": 5}),
        (r"expected \[B, 3 C, 1, T, 16\]", "Attention", [rows], {"heads": 2}),
        ("heads is 0, must be 1 to", "Attention", [case.qkv], {"heads": 0}),
        ("dy has shape", "AttentionGrad", [case.qkv, case.qkv, probability], {"heads": 2}),
        ("probability has shape", "AttentionGrad", [case.dy, case.qkv, probability[:, :1]], {"heads": 2}),
        ("alpha is not positive", "LeakyRelu", [rows], {"alpha": 0.0}),
        ("x has shape", "GeluGrad", [case.dy, rows], {"tanh": 0}),
        (
            r"weight has shape \[24\], but an example has 240 values",
            "AddWeight",
            [rows, normal(rng, 24)],
            weight,
        ),
        (r"weight has shape \[24\], but", "AddWeightGrad", [rows, normal(rng, 24)], weight),
    ]:
        with pytest.raises(Exception, match=f"sparsefleet {op_type}: .*{message}"):
            run_op(op_type, *inputs, **attributes)
