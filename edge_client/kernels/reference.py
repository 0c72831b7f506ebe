"""What every op of the domain "sparsefleet" means, in NumPy: naive, clear, float64 inside.

Each function takes the inputs of the op in the order of its schema, its attributes by name, and
returns the outputs in order. The compiled kernels must agree with it; nothing calls it to train.

Activations are "blocked": float32 [B, C, H, W, 16], where example n is lane n % 16 of block n // 16;
with a halo of h zeros, which neighbours share, [B, C + 1, H + h, W + h, 16] (see blocked.h for the
invariants). Vectors are [B, F, 1, 1, 16]. Here every lane counts as an example, so an op on blocked
tensors is the op on [16 B, C, H, W] between `examples` and `blocked`.
"""

import numpy as np
from numpy.typing import NDArray

LANES = 16

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Int = NDArray[np.int32]
Long = NDArray[np.int64]
Byte = NDArray[np.uint8]


# The layout


def blocked(x: NDArray[np.floating], halo: int) -> Float:
    """Turn [N, C, H, W] into blocks of 16 examples, with zeros in padding lanes and halo."""
    n, c, h, w = x.shape
    num_blocks = -(-n // LANES)
    y = np.zeros((num_blocks, c + (halo > 0), h + halo, w + halo, LANES), np.float32)
    maps = inner(y, halo)
    for example in range(n):
        maps[example // LANES, ..., example % LANES] = x[example]
    return y


def inner(x: Float, halo: int) -> Float:
    """The maps of a blocked tensor, without its halo, as a view [B, C, H, W, 16]."""
    return x[:, : x.shape[1] - (halo > 0), halo:, halo:]


def examples(x: Float, halo: int) -> Double:
    """Turn a blocked tensor into [16 B, C, H, W], padding lanes included, halo cut off."""
    maps = inner(x, halo)
    return maps.transpose(0, 4, 1, 2, 3).reshape(-1, *maps.shape[1:4]).astype(np.float64)


def pack(x: Float, *, out_halo: int, rank: int = 0) -> tuple[Float, Long]:
    """[N, C, H, W], tokens [N, T, C] or [N, F] -> (blocked tensor, [N]). Tokens are maps of one row."""
    del rank  # That of x; it is there for the gradient.
    return blocked(as_maps(x), out_halo), np.array([x.shape[0]], np.int64)


def pack_grad(dy: Float, count: Long, *, out_halo: int, rank: int) -> Float:
    """The gradient of `pack`: what `unpack` does."""
    return unpack(dy, count, in_halo=out_halo, rank=rank)


def unpack(x: Float, count: Long, *, in_halo: int = 0, rank: int = 2) -> Float:
    """Blocked tensor -> [N, C, H, W] (rank 4), tokens [N, W, C] (rank 3, H = 1) or [N, F] (rank 2)."""
    maps = examples(x, in_halo)[: count[0]].astype(np.float32)
    if rank == 4:
        return maps
    tokens = np.ascontiguousarray(maps[:, :, 0].transpose(0, 2, 1))
    return tokens if rank == 3 else tokens[:, 0]


def unpack_grad(dy: Float, *, in_halo: int = 0, rank: int = 0) -> Float:
    """What `pack` does; zero in padding lanes, which is where that invariant begins."""
    return pack(dy, out_halo=in_halo, rank=rank)[0]


def as_maps(x: Float) -> Float:
    """[N, C, H, W], [N, T, C] or [N, F] as [N, C, H, W]."""
    if x.ndim == 3:
        return x.transpose(0, 2, 1)[:, :, None, :]
    return x if x.ndim == 4 else x[:, :, None, None]


def flatten(
    x: Float, *, channels: int, in_halo: int, in_height: int, in_width: int, tokens: int = 0
) -> Float:
    """Blocked maps -> [B, C * H * W, 1, 1, 16], in the order c, h, w.

    With tokens = 1 -> [B, C, 1, H * W, 16]: every pixel becomes a token.
    """
    shape = (-1, channels, 1, in_height * in_width) if tokens else (-1, channels * in_height * in_width, 1, 1)
    return blocked(examples(x, in_halo).reshape(shape), 0)


def flatten_grad(
    dy: Float, *, channels: int, in_halo: int, in_height: int, in_width: int, tokens: int = 0
) -> Float:
    """The way back, into a map with its halo."""
    del tokens
    return blocked(examples(dy, 0).reshape(-1, channels, in_height, in_width), in_halo)


# Sparse layers


def dense_weight(values: Float, indices: Int, shape: tuple[int, ...]) -> Double:
    """The weight tensor with zeros where nothing is stored."""
    weight = np.zeros(int(np.prod(shape)), np.float64)
    weight[indices] = values
    return weight.reshape(shape)


def ungrouped(weight: Double, group: int) -> Double:
    """[K, C / group, ...] -> [K, C, ...]: zeros where an output channel does not read an input channel."""
    k, c, *kernel = weight.shape
    wide = np.zeros((group, k // group, group, c, *kernel))
    wide[range(group), :, range(group)] = weight.reshape(group, k // group, c, *kernel)
    return wide.reshape(k, group * c, *kernel)


def grouped(wide: Double, group: int) -> Double:
    """[K, C, ...] -> [K, C / group, ...]: what each output channel reads."""
    by_group = np.split(wide, group)
    return np.concatenate([np.split(rows, group, axis=1)[i] for i, rows in enumerate(by_group)])


def padded(x: Double, pad: int) -> Double:
    """Zeros around height and width."""
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))


def sparse_conv(
    x: Float,
    values: Float,
    bias: Float | None,
    indices: Int,
    *,
    out_channels: int,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    group: int = 1,
) -> Float:
    """Convolution; a weight's index is ((k * C / group + c) * kernel_h + r) * kernel_w + s.

    Output channels come in `group` groups of equal size; c counts within the input channels of k's group.
    """
    source = padded(examples(x, in_halo), pad)
    n, c, h, w = source.shape
    weight = ungrouped(dense_weight(values, indices, (out_channels, c // group, kernel_h, kernel_w)), group)
    out_h, out_w = (h - kernel_h) // stride + 1, (w - kernel_w) // stride + 1
    y = np.zeros((n, out_channels, out_h, out_w))
    for r in range(kernel_h):
        for s in range(kernel_w):
            seen = source[:, :, r : r + stride * out_h : stride, s : s + stride * out_w : stride]
            y += np.einsum("nchw,kc->nkhw", seen[:, :, :out_h, :out_w], weight[:, :, r, s])
    if bias is not None:
        y += bias[:, None, None]
    return blocked(y, out_halo)


def sparse_conv_grad(
    dy: Float,
    x: Float,
    values: Float,
    indices: Int,
    *,
    out_channels: int,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    group: int = 1,
    dx_step: int = 1,
) -> tuple[Float, Float, Float]:
    """Return (dx, dvalues, dbias).

    With dx_step, the stride of a 1x1 convolution, dx has only the pixels that it met, and no halo; the
    others are zero.
    """
    gradient = examples(dy, out_halo)
    source = padded(examples(x, in_halo), pad)
    _, _, out_h, out_w = gradient.shape
    shape = (out_channels, source.shape[1] // group, kernel_h, kernel_w)
    weight = ungrouped(dense_weight(values, indices, shape), group)
    d_source, d_weight = np.zeros_like(source), np.zeros_like(weight)
    for r in range(kernel_h):
        for s in range(kernel_w):
            rows = slice(r, r + stride * (out_h - 1) + 1, stride)
            columns = slice(s, s + stride * (out_w - 1) + 1, stride)
            d_source[:, :, rows, columns] += np.einsum("nkhw,kc->nchw", gradient, weight[:, :, r, s])
            d_weight[:, :, r, s] = np.einsum("nkhw,nchw->kc", gradient, source[:, :, rows, columns])
    height, width = d_source.shape[2] - pad, d_source.shape[3] - pad
    dx = blocked(d_source[:, :, pad:height:dx_step, pad:width:dx_step], in_halo if dx_step == 1 else 0)
    d_values = grouped(d_weight, group).reshape(-1)[indices].astype(np.float32)
    return dx, d_values, gradient.sum(axis=(0, 2, 3)).astype(np.float32)


def sparse_gemm(x: Float, values: Float, bias: Float | None, indices: Int, *, out_features: int) -> Float:
    """Compute x W^T + bias on vectors; a weight's index is m * F + f."""
    source = examples(x, 0)[:, :, 0, 0]
    y = source @ dense_weight(values, indices, (out_features, source.shape[1])).T
    if bias is not None:
        y += bias
    return blocked(y[:, :, None, None], 0)


def sparse_gemm_grad(
    dy: Float, x: Float, values: Float, indices: Int, *, out_features: int
) -> tuple[Float, Float, Float]:
    """Return (dx, dvalues, dbias)."""
    gradient, source = examples(dy, 0)[:, :, 0, 0], examples(x, 0)[:, :, 0, 0]
    dx = gradient @ dense_weight(values, indices, (out_features, source.shape[1]))
    d_weight = gradient.T @ source
    d_values = d_weight.reshape(-1)[indices].astype(np.float32)
    return blocked(dx[:, :, None, None], 0), d_values, gradient.sum(axis=0).astype(np.float32)


# Batch normalization


def batch_norm(
    x: Float,
    scale: Float,
    bias: Float,
    running_mean: Float,
    running_var: Float,
    count: Long,
    *,
    epsilon: float,
    training: int,
    in_halo: int,
    out_halo: int,
    grad_halo: int,
) -> tuple[Float, Float, Float, Float]:
    """Return (y, mean, var, invstd): training = 1 takes the statistics of the N examples.

    BatchNormRelu is this and relu; BatchNormAddRelu is this, add and relu; BatchNormReluMaxPool is this, relu
    and max_pool of 2x2 windows with stride 2. grad_halo concerns the gradient.

    var is unbiased, which is what a running variance averages; invstd comes from the biased one,
    which is what normalizes. With training = 0 all three come from the running statistics.
    """
    del grad_halo
    maps = examples(x, in_halo)
    if training:
        valid = maps[: count[0]]
        mean, biased = valid.mean(axis=(0, 2, 3)), valid.var(axis=(0, 2, 3))
        var = valid.var(axis=(0, 2, 3), ddof=1)
    else:
        mean = running_mean.astype(np.float64)
        biased = var = running_var.astype(np.float64)
    invstd = 1.0 / np.sqrt(biased + epsilon)
    factor = (scale * invstd)[:, None, None]
    y = (maps - mean[:, None, None]) * factor + bias[:, None, None]
    return blocked(y, out_halo), mean.astype(np.float32), var.astype(np.float32), invstd.astype(np.float32)


def batch_norm_grad(
    dy: Float,
    x: Float,
    scale: Float,
    mean: Float,
    invstd: Float,
    count: Long,
    *,
    epsilon: float,
    training: int,
    in_halo: int,
    out_halo: int,
    grad_halo: int,
) -> tuple[Float, Float, Float]:
    """Return (dx, dscale, dbias); dx has grad_halo, and zeros in padding lanes. epsilon is in invstd.

    The gradients of the fused ops apply relu_grad to dy first (BatchNormReluMaxPoolGrad: max_pool_grad, then
    relu_grad), which is the gradient of what was added;
    those of a sum (...SumGrad) add the second gradient to dy before that: where other_step is 2 to every
    second row and column, which is all that it has then, without halo.
    """
    del epsilon
    gradient = examples(dy, out_halo)[: count[0]]
    xhat = (examples(x, in_halo)[: count[0]] - mean[:, None, None]) * invstd[:, None, None].astype(np.float64)
    d_scale, d_bias = (gradient * xhat).sum(axis=(0, 2, 3)), gradient.sum(axis=(0, 2, 3))
    through = np.zeros_like(gradient)
    if training:
        num_values = gradient.size // gradient.shape[1]
        through = (d_bias[:, None, None] + xhat * d_scale[:, None, None]) / num_values
    dx = (scale * invstd)[:, None, None] * (gradient - through)
    return blocked(dx, grad_halo), d_scale.astype(np.float32), d_bias.astype(np.float32)


# Pointwise


def relu(x: Float) -> Float:
    """The larger of x and 0; NaN stays NaN."""
    return np.where(x < 0, np.float32(0), x)


def relu_grad(dy: Float, y: Float) -> Float:
    """The gradient where the output of relu was positive."""
    return np.where(y <= 0, np.float32(0), dy)


def add(a: Float, b: Float) -> Float:
    """The sum of two tensors of one shape; its gradient is the identity."""
    return a + b


# Loss


def softmax_cross_entropy(scores: Float, labels: Long) -> tuple[Float, Float]:
    """Return (mean loss, a scalar; log of the softmax [N, K])."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_prob[np.arange(len(labels)), labels].mean()
    return np.array(loss, np.float32), log_prob.astype(np.float32)


def softmax_cross_entropy_grad(dloss: Float, log_prob: Float, labels: Long) -> Float:
    """Return dscores [N, K] = dloss / N * (softmax - one-hot)."""
    gradient = np.exp(log_prob.astype(np.float64))
    gradient[np.arange(len(labels)), labels] -= 1.0
    return (gradient * dloss / len(labels)).astype(np.float32)


# Saved activations


def _valid(x: Float, count: Long) -> NDArray[np.bool_]:
    """Which elements of a blocked tensor are no padding lanes."""
    example = np.arange(x.shape[0])[:, None] * LANES + np.arange(LANES)
    return np.broadcast_to((example < count[0])[:, None, None, None, :], x.shape)


def save_activation(
    x: Float, count: Long, keep: Float, threshold: Float, *, in_halo: int
) -> tuple[NDArray[np.uint16], Long, Float, Float]:
    """Return (bits [B, C, H, W], begin [B * C + 1], values, threshold that was used).

    Kept is what is not zero and not below the threshold. With keep < 1 and a negative one, that is the
    k-th largest magnitude of all valid elements, zeros included, k = ceil(max(keep, 1e-7) * size).
    """
    maps = inner(x, in_halo)
    valid = _valid(maps, count)
    used = np.float32(0.0 if keep >= 1 else threshold)
    if used < 0:
        magnitudes = np.sort(np.abs(maps[valid]))[::-1]
        used = magnitudes[int(np.ceil(max(float(keep), 1e-7) * magnitudes.size)) - 1]
    kept = valid & (maps != 0) & ~(np.abs(maps) < used)
    bits = (kept * (1 << np.arange(LANES))).sum(axis=-1).astype(np.uint16)
    begin = np.concatenate([[0], np.cumsum(kept.sum(axis=(2, 3, 4)).reshape(-1))])
    return bits, begin.astype(np.int64), maps[kept], np.array(used, np.float32)


def restore_activation(bits: NDArray[np.uint16], begin: Long, values: Float, *, out_halo: int) -> Float:
    """What was kept, in its place, with zeros elsewhere."""
    kept = (bits[..., None] >> np.arange(LANES) & 1).astype(bool)
    b, c, h, w, _ = kept.shape
    y = blocked(np.zeros((b * LANES, c, h, w)), out_halo)
    inner(y, out_halo)[kept] = values
    return y


def halves(x: Float) -> NDArray[np.uint16]:
    """The bits of the nearest halves, ties to even; beyond the largest half: that one."""
    return np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16)
