"""The networks of the papers and of the boards: MODELS maps a name to a function that builds one.

Every function takes the input shape (channels, height, width) and the number of classes, and
returns a module with PyTorch's default initialisation: seed torch before calling.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import torch
from torch import nn

from export.vit import vit
from protocol.errors import ConfigError

InputShape = tuple[int, ...]
Builder = Callable[[InputShape, int], nn.Module]
Norm = Callable[[int], nn.Module]  # Of a number of maps.


def logistic(input_shape: InputShape, num_classes: int) -> nn.Module:
    """Logistic regression: one linear layer, a convex loss."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.Size(input_shape).numel()), num_classes))


def mlp(input_shape: InputShape, num_classes: int) -> nn.Module:
    """Two hidden layers of 1024: the fully connected network of the sparse-kernel papers."""
    num_inputs = int(torch.Size(input_shape).numel())
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(num_inputs, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, num_classes),
    )


def lenet(input_shape: InputShape, num_classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling (LeCun et al., 1998), for 28x28 and larger."""
    channels, height, width = input_shape
    num_features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(num_features, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def cnn(input_shape: InputShape, num_classes: int) -> nn.Module:
    """Three convolutions with batch norm for small images: the network of the demo (8x8 digits)."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 2) * (width // 2), num_classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016); a 1x1 convolution where shapes change."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, norm: Norm) -> None:
        """Build the block; the first convolution has the stride."""
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(num_outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_inputs != num_outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), norm(num_outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(residual + shortcut)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet: 3x3 stem without pooling, stages of basic blocks, global average pooling."""

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        num_blocks: tuple[int, ...],
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        """One stage for each entry of `num_blocks`, of 64, 128, 256, ... maps."""
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = norm(64)
        blocks: list[nn.Module] = []
        width = 64
        for stage, count in enumerate(num_blocks):
            for block in range(count):
                num_outputs = 64 * 2**stage
                blocks.append(BasicBlock(width, num_outputs, 2 if stage and not block else 1, norm))
                width = num_outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        out = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.pool(out), 1))
        return logits


def resnet8(input_shape: InputShape, num_classes: int) -> nn.Module:
    """One block a stage; 1,227,594 parameters on CIFAR-10."""
    return ResNet(input_shape[0], num_classes, (1, 1, 1))


def group_norm(num_maps: int) -> nn.Module:
    """Group norm with two groups, as the papers on pruned messages use it: no running statistics."""
    return nn.GroupNorm(2, num_maps)


def resnet8_gn(input_shape: InputShape, num_classes: int) -> nn.Module:
    """ResNet-8 with group norm (Grativol Ribeiro et al., 2023); 1,227,594 parameters on CIFAR-10."""
    return ResNet(input_shape[0], num_classes, (1, 1, 1), group_norm)


def resnet12_gn(input_shape: InputShape, num_classes: int) -> nn.Module:
    """ResNet-12 of 16, 40, 80 and 160 maps with group norm and leaky ReLU; 780,266 parameters on CIFAR-10.

    The second network of Grativol Ribeiro et al. (2023): each block has three convolutions and ends in a
    2x2 max pooling.
    """
    widths = (input_shape[0], 16, 40, 80, 160)
    blocks = [PooledBlock(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


class PooledBlock(nn.Module):
    """Three 3x3 convolutions, a 1x1 shortcut, leaky ReLU and 2x2 max pooling."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        """Build the block."""
        super().__init__()
        widths = (num_inputs, num_outputs, num_outputs, num_outputs)
        self.convs = nn.ModuleList(
            nn.Conv2d(*pair, 3, 1, 1, bias=False) for pair in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(group_norm(num_outputs) for _ in self.convs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(num_inputs, num_outputs, 1, bias=False), group_norm(num_outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled maps."""
        out = x
        for position, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if position < 2:
                out = nn.functional.leaky_relu(out, 0.1)
        return nn.functional.max_pool2d(nn.functional.leaky_relu(out + self.shortcut(x), 0.1), 2)


def resnet18(input_shape: InputShape, num_classes: int) -> nn.Module:
    """Two blocks in each of four stages; 11,173,962 parameters on CIFAR-10."""
    return ResNet(input_shape[0], num_classes, (2, 2, 2, 2))


def vgg19(input_shape: InputShape, num_classes: int) -> nn.Module:
    """VGG-19 with batch norm and a single classifier layer; 20,035,018 parameters on CIFAR-10."""
    layers: list[nn.Module] = []
    width = input_shape[0]
    for stage, (num_outputs, count) in enumerate([(64, 2), (128, 2), (256, 4), (512, 4), (512, 4)]):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [
                nn.Conv2d(width, num_outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(num_outputs),
                nn.ReLU(),
            ]
            width = num_outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


MODELS: dict[str, Builder] = {
    "logistic": logistic,
    "mlp": mlp,
    "lenet": lenet,
    "cnn": cnn,
    "resnet8": resnet8,
    "resnet8_gn": resnet8_gn,
    "resnet12_gn": resnet12_gn,
    "resnet18": resnet18,
    "vgg19": vgg19,
    "vit": vit,
}

DEFAULT_INPUT_SHAPE: dict[str, InputShape] = {
    "logistic": (1, 28, 28),
    "mlp": (1, 28, 28),
    "lenet": (1, 28, 28),
    "cnn": (1, 8, 8),
    "resnet8": (3, 32, 32),
    "resnet8_gn": (3, 32, 32),
    "resnet12_gn": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "vgg19": (3, 32, 32),
    "vit": (3, 32, 32),
}


def builder(name: str) -> Builder:
    """Return a built-in model's function, or the user's `module:function` with the same arguments.

    Raises:
        ConfigError: no such model, module or function.
    """
    if name in MODELS:
        return MODELS[name]
    module_name, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"unknown model {name!r}; built in are {', '.join(MODELS)}; yours is 'module:function'"
        )
    try:
        found = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ConfigError(f"model {name!r} is not a function of (input_shape, num_classes)")
    return found  # type: ignore[no-any-return]


def input_shape(name: str, given: str | None) -> InputShape:
    """Return the input shape from "channels,height,width", or a built-in model's own.

    Raises:
        ConfigError: it is not three positive numbers, or is missing for a model that has no default.
    """
    builder(name)  # An unknown model is the better thing to complain about.
    if given is None:
        if name not in DEFAULT_INPUT_SHAPE:
            raise ConfigError(f"model {name!r} needs --input-shape channels,height,width")
        return DEFAULT_INPUT_SHAPE[name]
    parts = given.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ConfigError(f"--input-shape {given!r} is not channels,height,width, for example 1,28,28")
    return tuple(int(part) for part in parts)
