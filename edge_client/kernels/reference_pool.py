"""What the pooling ops mean, in NumPy: a part of reference.py.

Output size is rounded down; padding is minus infinity (max) or left out (average).
"""

import numpy as np

from edge_client.kernels.reference import Byte, Float, blocked, examples


def _windows(size: int, kernel: int, stride: int, pad: int) -> list[tuple[int, int]]:
    """The [begin, end) of every window, which may begin below 0 and end beyond size."""
    begins = [o * stride - pad for o in range((size + 2 * pad - kernel) // stride + 1)]
    return [(begin, begin + kernel) for begin in begins]


def max_pool(
    x: Float,
    *,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    in_height: int,
    in_width: int,
) -> tuple[Float, Byte]:
    """Return (y, argmax [B, C, H', W', 16]): r * kernel_w + s of the first maximum, without halo.

    As in torch, a NaN wins over everything that came before it.
    """
    maps = examples(x, in_halo)
    rows = _windows(in_height, kernel_h, stride, pad)
    columns = _windows(in_width, kernel_w, stride, pad)
    n, c = maps.shape[:2]
    y = np.zeros((n, c, len(rows), len(columns)))
    argmax = np.zeros(y.shape, np.int64)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            best = np.full((n, c), -np.inf)
            first = (max(top, 0) - top) * kernel_w + max(left, 0) - left
            best_at = np.full((n, c), first)
            for h in range(max(top, 0), min(bottom, in_height)):
                for w in range(max(left, 0), min(right, in_width)):
                    value = maps[:, :, h, w]
                    wins = (value > best) | np.isnan(value)
                    best = np.where(wins, value, best)
                    best_at = np.where(wins, (h - top) * kernel_w + w - left, best_at)
            y[:, :, i, j], argmax[:, :, i, j] = best, best_at
    return blocked(y, out_halo), blocked(argmax.astype(np.float64), 0).astype(np.uint8)


def max_pool_grad(
    dy: Float,
    argmax: Byte,
    *,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    in_height: int,
    in_width: int,
) -> Float:
    """Give every gradient to the pixel that was the maximum of its window."""
    gradient, place = examples(dy, out_halo), examples(argmax.astype(np.float32), 0)
    n, c = gradient.shape[:2]
    dx = np.zeros((n, c, in_height, in_width))
    for i, (top, bottom) in enumerate(_windows(in_height, kernel_h, stride, pad)):
        for j, (left, right) in enumerate(_windows(in_width, kernel_w, stride, pad)):
            for h in range(max(top, 0), min(bottom, in_height)):
                for w in range(max(left, 0), min(right, in_width)):
                    is_place = place[:, :, i, j] == (h - top) * kernel_w + w - left
                    dx[:, :, h, w] += np.where(is_place, gradient[:, :, i, j], 0.0)
    return blocked(dx, in_halo)


def average_pool(
    x: Float,
    *,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    in_height: int,
    in_width: int,
    count_include_pad: int,
) -> Float:
    """The mean of every window, over its part inside the map or (count_include_pad) over its area."""
    maps = examples(x, in_halo)
    rows = _windows(in_height, kernel_h, stride, pad)
    columns = _windows(in_width, kernel_w, stride, pad)
    y = np.zeros((*maps.shape[:2], len(rows), len(columns)))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            seen = maps[:, :, max(top, 0) : min(bottom, in_height), max(left, 0) : min(right, in_width)]
            area = kernel_h * kernel_w if count_include_pad else seen.shape[2] * seen.shape[3]
            y[:, :, i, j] = seen.sum(axis=(2, 3)) / area
    return blocked(y, out_halo)


def average_pool_grad(
    dy: Float,
    *,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    pad: int,
    in_halo: int,
    out_halo: int,
    in_height: int,
    in_width: int,
    count_include_pad: int,
) -> Float:
    """Share every gradient equally among the pixels of its window."""
    gradient = examples(dy, out_halo)
    dx = np.zeros((*gradient.shape[:2], in_height, in_width))
    for i, (top, bottom) in enumerate(_windows(in_height, kernel_h, stride, pad)):
        for j, (left, right) in enumerate(_windows(in_width, kernel_w, stride, pad)):
            seen = dx[:, :, max(top, 0) : min(bottom, in_height), max(left, 0) : min(right, in_width)]
            area = kernel_h * kernel_w if count_include_pad else seen.shape[2] * seen.shape[3]
            seen += gradient[:, :, i : i + 1, j : j + 1] / area
    return blocked(dx, in_halo)


def global_average_pool(x: Float, *, in_halo: int, in_height: int, in_width: int) -> Float:
    """The mean of every map: [B, C, 1, 1, 16]."""
    return blocked(examples(x, in_halo).sum(axis=(2, 3), keepdims=True) / (in_height * in_width), 0)


def global_average_pool_grad(dy: Float, *, in_halo: int, in_height: int, in_width: int) -> Float:
    """Share every gradient equally among the pixels of its map."""
    share = examples(dy, 0) / (in_height * in_width)
    return blocked(np.broadcast_to(share, (*share.shape[:2], in_height, in_width)), in_halo)
