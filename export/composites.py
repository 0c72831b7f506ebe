"""Operators that stay whole when a module is traced, where torch would write a dozen small ones.

Torch's exporter takes group norm, layer norm and GELU apart. Their pieces have no sparsefleet form,
and finding them again by pattern would break with the next version of the exporter. So while
`whole()` is active the exporter writes one node of our domain for each; outside it writes standard
operators, which is what the evaluation graph needs.

Attention is spread over two products, a softmax, and reshapes that every implementation writes
differently. `attention` below is the one form that is recognised; nn.MultiheadAttention is brought to it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.onnx import symbolic_helper

from protocol.errors import ArtifactError

DOMAIN = "sparsefleet"
_is_whole = False  # Tracing is one per process: torch's registry of symbolics is, too.


def _group_norm(g: Any, x: Any, groups: Any, scale: Any, bias: Any, epsilon: Any, _: Any) -> Any:
    attributes = {
        "groups_i": symbolic_helper._parse_arg(groups, "i"),
        "epsilon_f": symbolic_helper._parse_arg(epsilon, "f"),
    }
    return g.op(f"{DOMAIN}::GroupNorm", x, *_affine(scale, bias), **attributes).setType(x.type())


def _layer_norm(g: Any, x: Any, shape: Any, scale: Any, bias: Any, epsilon: Any, _: Any) -> Any:
    attributes = {
        "axes_i": len(symbolic_helper._parse_arg(shape, "is")),
        "epsilon_f": symbolic_helper._parse_arg(epsilon, "f"),
    }
    return g.op(f"{DOMAIN}::LayerNorm", x, *_affine(scale, bias), **attributes).setType(x.type())


def _affine(scale: Any, bias: Any) -> list[Any]:
    return [] if symbolic_helper._is_none(scale) or symbolic_helper._is_none(bias) else [scale, bias]


def _gelu(g: Any, x: Any, approximate: Any) -> Any:
    return g.op(
        f"{DOMAIN}::Gelu", x, tanh_i=int(symbolic_helper._parse_arg(approximate, "s") == "tanh")
    ).setType(x.type())


def _instance_norm(
    g: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, use_input: Any, *rest: Any
) -> Any:
    """Group norm with a group for each map. With running statistics it is a norm of another kind."""
    if not symbolic_helper._is_none(mean) or symbolic_helper._is_none(scale):
        raise ArtifactError("InstanceNorm must have affine=True and track_running_stats=False")
    attributes = {
        "groups_i": symbolic_helper._get_tensor_dim_size(scale, 0),
        "epsilon_f": symbolic_helper._parse_arg(rest[1], "f"),
    }
    return g.op(f"{DOMAIN}::GroupNorm", x, scale, bias, **attributes).setType(x.type())


def _hard_sigmoid(g: Any, x: Any) -> Any:
    """Write clip(x / 6 + 1 / 2, 0, 1): HardSigmoid and HardSwish have no gradient in the training build."""
    sixth, half, zero, one = (g.op("Constant", value_t=torch.tensor(v)) for v in (1 / 6, 0.5, 0.0, 1.0))
    return g.op("Clip", g.op("Add", g.op("Mul", x, sixth), half), zero, one).setType(x.type())


def _hard_swish(g: Any, x: Any) -> Any:
    return g.op("Mul", x, _hard_sigmoid(g, x)).setType(x.type())


SYMBOLICS = {
    "aten::group_norm": _group_norm,
    "aten::instance_norm": _instance_norm,
    "aten::layer_norm": _layer_norm,
    "aten::gelu": _gelu,
    "aten::hardsigmoid": _hard_sigmoid,
    "aten::hardswish": _hard_swish,
}


@contextlib.contextmanager
def whole(opset: int) -> Iterator[None]:
    """While active, torch.onnx.export of this opset writes the operators above as one node each."""
    global _is_whole
    for name, symbolic in SYMBOLICS.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, opset)  # type: ignore[attr-defined, arg-type]
    _is_whole = True
    try:
        yield
    finally:
        _is_whole = False
        for name in SYMBOLICS:
            torch.onnx.unregister_custom_op_symbolic(name, opset)  # type: ignore[attr-defined]


class _Attention(torch.autograd.Function):
    """Only traced, never differentiated."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, heads: int) -> torch.Tensor:
        return _attention(qkv, heads)

    @staticmethod
    def symbolic(g: Any, qkv: Any, heads: int) -> Any:
        mixed = g.op(f"{DOMAIN}::Attention", qkv, heads_i=heads)
        return mixed.setType(qkv.type().with_sizes([None, None, None]))


def _attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    num_tokens, num_features = qkv.shape[1], qkv.shape[2] // 3
    packed = qkv.reshape(-1, num_tokens, 3, heads, num_features // heads).permute(2, 0, 3, 1, 4)
    q, k, v = packed[0], packed[1], packed[2]
    scores = q @ k.transpose(2, 3) * (num_features // heads) ** -0.5
    mixed = scores.softmax(3) @ v
    tokens: torch.Tensor = mixed.transpose(1, 2).reshape(-1, num_tokens, num_features)
    return tokens


def attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Return softmax(Q K^T / sqrt(D / heads)) V for each head (Vaswani et al., 2017), with no mask.

    qkv is [N, T, 3 D]: queries, keys and values side by side, heads outermost in each. The result is
    [N, T, D]. This is what nn.MultiheadAttention does between its two projections.
    """
    if _is_whole:
        mixed: torch.Tensor = _Attention.apply(qkv, heads)  # type: ignore[no-untyped-call]
        return mixed
    return _attention(qkv, heads)


def pack_attention(module: nn.Module) -> None:
    """Let every nn.MultiheadAttention of a module call `attention`, in place, where that is the same.

    That is self-attention of tokens [N, T, D] without masks or dropout. Attention weights, which nobody reads
    in training, are not returned. Other uses keep PyTorch's own form.
    """
    for layer in module.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.forward = functools.partial(_self_attention, layer, layer.forward)  # type: ignore[method-assign]


def _self_attention(
    layer: nn.MultiheadAttention, original: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> Any:
    masks = [*args, kwargs.get("key_padding_mask"), kwargs.get("attn_mask"), layer.bias_k]
    is_plain = query is key and key is value and query.dim() == 3 and layer.batch_first
    is_plain = is_plain and layer.in_proj_weight is not None and layer.in_proj_bias is not None
    if not is_plain or layer.dropout or layer.add_zero_attn or any(mask is not None for mask in masks):
        return original(query, key, value, *args, **kwargs)
    qkv = nn.functional.linear(query, layer.in_proj_weight, layer.in_proj_bias)
    mixed = attention(qkv, layer.num_heads)
    return nn.functional.linear(mixed, layer.out_proj.weight, layer.out_proj.bias), None


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens [N, T, D]: nn.MultiheadAttention without what export cannot take."""

    def __init__(self, num_features: int, heads: int) -> None:
        """`heads` must divide `num_features`."""
        super().__init__()
        if num_features % heads:
            raise ValueError(f"{heads} heads do not divide {num_features} features")
        self.heads = heads
        self.qkv = nn.Linear(num_features, 3 * num_features)
        self.projection = nn.Linear(num_features, num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mixed tokens."""
        mixed: torch.Tensor = self.projection(attention(self.qkv(x), self.heads))
        return mixed
