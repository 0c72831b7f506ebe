"""What the ops of group norm networks and transformers mean, in NumPy: the second part of reference.py.

Tokens [N, T, D] are blocked as maps of D channels and one row of T pixels: [B, D, 1, T, 16].
"""

import math

import numpy as np

from edge_client.kernels.reference import LANES, Double, Float, blocked, examples

# Normalization of each example by itself


def group_norm(
    x: Float, scale: Float, bias: Float, *, epsilon: float, groups: int, in_halo: int, out_halo: int
) -> tuple[Float, Float, Float]:
    """Return (y, mean, invstd): statistics [B, groups, 16] over each example's channels of a group."""
    maps = examples(x, in_halo)
    n, c, h, w = maps.shape
    members = maps.reshape(n, groups, -1)
    mean, invstd = members.mean(axis=2), 1.0 / np.sqrt(members.var(axis=2) + epsilon)
    xhat = ((members - mean[:, :, None]) * invstd[:, :, None]).reshape(n, c, h, w)
    y = xhat * scale[:, None, None] + bias[:, None, None]
    return blocked(y, out_halo), in_lanes(mean), in_lanes(invstd)


def group_norm_grad(
    dy: Float,
    x: Float,
    scale: Float,
    mean: Float,
    invstd: Float,
    *,
    epsilon: float,
    groups: int,
    in_halo: int,
    out_halo: int,
) -> tuple[Float, Float, Float]:
    """Return (dx, dscale, dbias). epsilon is already in invstd."""
    del epsilon
    gradient, maps = examples(dy, out_halo), examples(x, in_halo)
    shape, by_group = maps.shape, (len(maps), groups, -1)
    inverse = out_of_lanes(invstd)[:, :, None]
    xhat = (maps.reshape(by_group) - out_of_lanes(mean)[:, :, None]) * inverse
    g = (gradient * scale[:, None, None]).reshape(by_group)
    dx = inverse * (g - g.mean(axis=2, keepdims=True) - xhat * (g * xhat).mean(axis=2, keepdims=True))
    d_scale = (gradient * xhat.reshape(shape)).sum(axis=(0, 2, 3)).astype(np.float32)
    return blocked(dx.reshape(shape), in_halo), d_scale, gradient.sum(axis=(0, 2, 3)).astype(np.float32)


def layer_norm(x: Float, scale: Float, bias: Float, *, epsilon: float) -> tuple[Float, Float, Float]:
    """Return (y, mean, invstd): statistics [B, H * W, 16] over the channels of each pixel."""
    maps = examples(x, 0)
    mean, invstd = maps.mean(axis=1, keepdims=True), 1.0 / np.sqrt(maps.var(axis=1, keepdims=True) + epsilon)
    y = (maps - mean) * invstd * scale[:, None, None] + bias[:, None, None]
    flat = (len(maps), -1)
    return blocked(y, 0), in_lanes(mean.reshape(flat)), in_lanes(invstd.reshape(flat))


def layer_norm_grad(
    dy: Float, x: Float, scale: Float, mean: Float, invstd: Float, *, epsilon: float
) -> tuple[Float, Float, Float]:
    """Return (dx, dscale, dbias). epsilon is already in invstd."""
    del epsilon
    gradient, maps = examples(dy, 0), examples(x, 0)
    per_pixel = (len(maps), 1, *maps.shape[2:])
    inverse = out_of_lanes(invstd).reshape(per_pixel)
    xhat = (maps - out_of_lanes(mean).reshape(per_pixel)) * inverse
    g = gradient * scale[:, None, None]
    dx = inverse * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))
    d_scale = (gradient * xhat).sum(axis=(0, 2, 3)).astype(np.float32)
    return blocked(dx, 0), d_scale, gradient.sum(axis=(0, 2, 3)).astype(np.float32)


def in_lanes(statistics: Double) -> Float:
    """[16 B, S] -> [B, S, 16]."""
    by_block = statistics.reshape(-1, LANES, statistics.shape[1])
    return np.ascontiguousarray(by_block.transpose(0, 2, 1), np.float32)


def out_of_lanes(statistics: Float) -> Double:
    """[B, S, 16] -> [16 B, S]."""
    return statistics.transpose(0, 2, 1).reshape(-1, statistics.shape[1]).astype(np.float64)


# Pointwise


def leaky_relu(x: Float, *, alpha: float) -> Float:
    """Keep x where it is positive; multiply it by alpha elsewhere."""
    return np.where(x < 0, np.float32(alpha) * x, x)


def leaky_relu_grad(dy: Float, y: Float, *, alpha: float) -> Float:
    """The slope alpha is positive, so y has the sign of x."""
    return np.where(y > 0, dy, np.float32(alpha) * dy)


def gelu(x: Float, *, tanh: int) -> Float:
    """Gaussian error linear unit (Hendrycks and Gimpel, 2016): x Phi(x), or its approximation by tanh."""
    return np.asarray(x * _gate(x.astype(np.float64), tanh), np.float32)


def gelu_grad(dy: Float, x: Float, *, tanh: int) -> Float:
    """The derivative of x * gate(x), with that of the gate written out."""
    v = np.clip(x.astype(np.float64), -40, 40)
    if tanh:
        t = 2 * _gate(v, 1) - 1
        slope = 0.5 * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * v * v)
    else:
        slope = np.exp(-0.5 * v * v) / np.sqrt(2 * np.pi)
    return np.asarray(dy * (_gate(v, tanh) + v * slope), np.float32)


def _gate(v: Double, tanh: int) -> Double:
    v = np.clip(v, -40, 40)
    if tanh:
        return np.asarray(0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))))
    erf: Double = np.array([math.erf(u) for u in (v / math.sqrt(2)).reshape(-1)]).reshape(v.shape)
    return 0.5 * (1 + erf)


def add_weight(x: Float, weight: Float, *, halo: int, channels_last: int) -> Float:
    """Add a weight [1, C, H, W], or [1, T, C] with channels_last, to every example; halo stays zero."""
    maps = examples(x, halo)
    return blocked(maps + _as_example(weight, maps.shape, channels_last), halo)


def add_weight_grad(dy: Float, weight: Float, *, halo: int, channels_last: int) -> Float:
    """The gradient of the weight, in its shape; that of x is dy."""
    total = examples(dy, halo).sum(axis=0)
    ordered = total.transpose(1, 2, 0) if channels_last else total
    return np.asarray(ordered.reshape(weight.shape), np.float32)


def _as_example(weight: Float, shape: tuple[int, ...], channels_last: int) -> Float:
    _, c, h, w = shape
    return weight.reshape(h, w, c).transpose(2, 0, 1) if channels_last else weight.reshape(c, h, w)


# Attention


def attention(qkv: Float, *, heads: int) -> tuple[Float, Float]:
    """[B, 3 C, 1, T, 16] -> (y [B, C, 1, T, 16], probability [B, heads, T, T, 16]).

    softmax(Q K^T / sqrt(C / heads)) V in each head (Vaswani et al., 2017); Q, K and V are the thirds of
    the channels, and heads are outermost in each.
    """
    q, k, v = _heads(examples(qkv, 0)[:, :, 0], 3 * heads)
    scores = np.einsum("nhft,nhfu->nhtu", q, k) / np.sqrt(q.shape[2])
    e = np.exp(scores - scores.max(axis=3, keepdims=True))
    p = e / e.sum(axis=3, keepdims=True)
    y = np.einsum("nhtu,nhfu->nhft", p, v).reshape(len(p), -1, 1, p.shape[2])
    return blocked(y, 0), _probability_in_lanes(p)


def attention_grad(dy: Float, qkv: Float, probability: Float, *, heads: int) -> Float:
    """Return dqkv, in the shape of qkv."""
    q, k, v = _heads(examples(qkv, 0)[:, :, 0], 3 * heads)
    (d,) = _heads(examples(dy, 0)[:, :, 0], heads, parts=1)
    p = probability.transpose(0, 4, 1, 2, 3).reshape(-1, *probability.shape[1:4]).astype(np.float64)
    scale = 1 / np.sqrt(q.shape[2])
    dp = np.einsum("nhft,nhfu->nhtu", d, v)
    ds = p * (dp - (p * dp).sum(axis=3, keepdims=True)) * scale
    parts = (
        np.einsum("nhtu,nhfu->nhft", ds, k),
        np.einsum("nhtu,nhft->nhfu", ds, q),
        np.einsum("nhtu,nhft->nhfu", p, d),
    )
    return blocked(np.concatenate([part.reshape(len(p), -1, 1, p.shape[2]) for part in parts], axis=1), 0)


def _heads(x: Double, groups: int, parts: int = 3) -> list[Double]:
    """[n, C, T] -> `parts` arrays [n, heads, C / groups, T]."""
    n, c, t = x.shape
    return np.split(x.reshape(n, groups, c // groups, t), parts, axis=1)


def _probability_in_lanes(p: Double) -> Float:
    by_block = p.reshape(-1, LANES, *p.shape[1:])
    return np.ascontiguousarray(by_block.transpose(0, 2, 3, 4, 1), np.float32)
