"""A small Vision Transformer (Dosovitskiy et al., 2021) whose weights can all be pruned.

Patches of 4x4 become tokens by a convolution; positions are learned; the mean of the tokens is
classified, so there is no class token. Blocks normalize first, as in the paper.
"""

from __future__ import annotations

import torch
from torch import nn

from export.composites import SelfAttention


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalized tokens and added to them."""

    def __init__(self, num_features: int, heads: int) -> None:
        """The perceptron is four times as wide as the tokens."""
        super().__init__()
        self.norm1 = nn.LayerNorm(num_features)
        self.attention = SelfAttention(num_features, heads)
        self.norm2 = nn.LayerNorm(num_features)
        self.widen = nn.Linear(num_features, 4 * num_features)
        self.narrow = nn.Linear(4 * num_features, num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next tokens [N, T, D]."""
        x = x + self.attention(self.norm1(x))
        tokens: torch.Tensor = x + self.narrow(nn.functional.gelu(self.widen(self.norm2(x))))
        return tokens


class VisionTransformer(nn.Module):
    """Classifies images [N, C, H, W] whose sides are multiples of `patch`."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        patch: int = 4,
        num_features: int = 192,
        depth: int = 6,
        heads: int = 3,
    ) -> None:
        """PyTorch's default initialisation, and positions of deviation 0.02."""
        super().__init__()
        channels, height, width = input_shape
        num_tokens = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, num_features, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, num_tokens, num_features))
        self.blocks = nn.Sequential(*(Block(num_features, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(num_features)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: torch.Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vit(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Six blocks of 192 features and 3 heads on 4x4 patches; 2,693,194 parameters on CIFAR-10."""
    return VisionTransformer(input_shape, num_classes)
