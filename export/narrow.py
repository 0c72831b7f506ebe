"""Physically smaller networks: whole channels are removed, and what is left runs on the dense kernels.

Structured pruning before training, as FedPaI-S does it (Wang et al., 2025, arXiv 2504.00308, 3.3) with the
importance of Network Slimming and Early-Bird tickets (Liu et al., 2017; You et al., 2020): the scales of
the batch norms. Which channels go together is found in the traced graph (channels.py).

The narrowed module computes what the whole one would with the removed channels' outputs at zero, group
norm excepted, whose statistics were over them, too. `origin` says which weights of the whole model were
kept, as a mask: a server can put narrow updates back into it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from export.channels import Group, Network, analyse
from export.trace import trace
from protocol.errors import ConfigError
from protocol.layout import Layout
from protocol.sparse import Mask

Floats = npt.NDArray[np.float64]
Kept = list[npt.NDArray[np.int64]]  # Of each group: the channels that stay, increasing.

L1, BN_SCALE = IMPORTANCES = ("l1", "bn-scale")
LAYER, GLOBAL = RANKINGS = ("layer", "global")


@dataclass(frozen=True)
class Narrowed:
    """A narrowed module and where it came from."""

    module: nn.Module
    network: Network  # The whole one's.
    kept: Kept

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Trained and running values before and after."""
        whole = _whole(self.network)
        return _num_parameters(self.network, whole), _num_parameters(self.network, self.kept)

    @property
    def num_macs(self) -> tuple[int, int]:
        """Multiply-adds of one example's forward pass before and after."""
        whole = _whole(self.network)
        return _num_macs(self.network, whole), _num_macs(self.network, self.kept)

    @property
    def widths(self) -> list[tuple[str, int, int, str]]:
        """The first weight that writes each group of channels, widths before and after, and why it is fixed."""
        pairs = zip(self.network.groups, self.kept, strict=True)
        return [(g.writers[0], g.size, len(kept), g.fixed) for g, kept in pairs if g.writers]

    def facts(self) -> dict[str, Any]:
        """Return what was removed, for a report."""
        return {
            "num_parameters": self.num_parameters,
            "num_macs": self.num_macs,
            "widths": [
                dict(zip(("weight", "before", "after", "fixed"), w, strict=True)) for w in self.widths
            ],
        }

    def lines(self) -> list[str]:
        """Return the same as text."""
        lines = [
            f"  {before:>5} -> {after:<5} {name}{f'  ({fixed})' if fixed else ''}"
            for name, before, after, fixed in self.widths
        ]
        for what, (before, after) in (("parameters", self.num_parameters), ("multiply-adds", self.num_macs)):
            lines.append(f"{what}: {before:,} -> {after:,} ({after / before:.1%})")
        return ["channels that are written by:", *lines]

    def origin(self, whole: Layout) -> Mask:
        """Return the positions of the whole model that the narrowed one has, in its own order."""
        axes = _axes(self.network)
        parts = []
        for piece in whole.pieces:
            positions = np.arange(piece.offset, piece.end).reshape(piece.shape)
            for axis, index, repeat in axes.get(piece.name, []):
                positions = positions.take(_entries(self.kept[index], repeat), axis)
            parts.append(positions.reshape(-1))
        return Mask(np.concatenate(parts).astype(np.int32), whole.size)


@dataclass(frozen=True)
class Widths:
    """What a narrowed network is to be.

    Attributes:
        keep: share of the parameters in (0, 1]; the nearest that the constraints allow is taken.
        importance: "l1", mean magnitude of the filters that write a channel, by the mean of their layer;
            or "bn-scale", magnitude of its norms' scales.
        ranking: "layer": every layer keeps the same share; "global": the most important of all layers.
        round_to: widths become multiples of it, where they are larger.

    Raises:
        ConfigError: a value is out of range.
    """

    keep: float
    importance: str = L1
    ranking: str = LAYER
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check."""
        if not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"keep is {self.keep}, not a share of the parameters in (0, 1]")
        if self.importance not in IMPORTANCES or self.ranking not in RANKINGS:
            raise ConfigError(
                f"importance is one of {', '.join(IMPORTANCES)}, ranking one of {', '.join(RANKINGS)}"
            )
        if self.round_to < 1:
            raise ConfigError(f"widths cannot be multiples of {self.round_to}")


def narrow(
    module: nn.Module,
    input_shape: tuple[int, ...],
    widths: Widths,
    scores: Mapping[str, npt.ArrayLike] | None = None,
) -> Narrowed:
    """Return a copy of the module with its most important channels.

    `scores` are tensors to take the importance from instead of the module's own, by parameter name, such
    as a mean over clients. `input_shape` is that of one example.

    Raises:
        ConfigError: the share cannot be reached, or the network has no scales.
        ArtifactError: torch cannot trace the module.
    """
    network = analyse(trace(module, input_shape))
    tensors = {name: np.asarray(value.detach(), np.float64) for name, value in module.state_dict().items()}
    tensors.update({name: np.asarray(value, np.float64) for name, value in (scores or {}).items()})
    order = _order(network, tensors, widths.importance, widths.ranking)
    wanted = round(widths.keep * _num_parameters(network, _whole(network)))
    kept = _nearest(network, order, wanted, widths.round_to)
    return Narrowed(_cut(module, network, kept), network, kept)


@dataclass(frozen=True)
class _Order:
    """How channels leave: units of one channel for each part of a group's partition, the best first."""

    units: list[npt.NDArray[np.int64]]  # Of each group [units, partition]; empty where it is fixed.
    leave_at: list[Floats]  # Of each unit: the share in (0, 1] below which it leaves.


def _order(network: Network, tensors: Mapping[str, Floats], importance: str, ranking: str) -> _Order:
    units: list[npt.NDArray[np.int64]] = []
    worth: list[Floats] = []
    for group in network.groups:
        if group.fixed or group.size % group.partition:
            units.append(np.empty((0, group.partition), np.int64))
            worth.append(np.empty(0))
            continue
        value = _importance(group, tensors, importance).reshape(group.partition, -1)
        best = np.argsort(-value, axis=1, kind="stable")
        starts = np.arange(group.partition)[:, None] * value.shape[1]
        units.append((best + starts).T)
        worth.append(np.take_along_axis(value, best, axis=1).mean(axis=0))
    if not any(len(u) for u in units):
        raise ConfigError("no channel of this network can be removed")
    if ranking == LAYER:
        return _Order(units, [(np.arange(len(u)) + 0.5) / max(1, len(u)) for u in units])
    everything = np.sort(-np.concatenate(worth))
    return _Order(units, [(np.searchsorted(everything, -w, "right") - 0.5) / len(everything) for w in worth])


def _importance(group: Group, tensors: Mapping[str, Floats], importance: str) -> Floats:
    if importance == BN_SCALE:
        if not group.scales:
            raise ConfigError(
                f"importance {BN_SCALE!r} needs a norm behind every layer; {', '.join(group.writers) or 'one'} has "
                f"none: use {L1!r}"
            )
        return np.asarray(np.mean([np.abs(tensors[name]) for name in group.scales], axis=0), np.float64)
    total = np.zeros(group.size)
    for name in group.writers:
        filters = np.abs(tensors[name]).reshape(group.size, -1).mean(axis=1)
        total += filters / max(float(filters.mean()), np.finfo(np.float32).tiny)
    return total / max(1, len(group.writers))


def _nearest(network: Network, order: _Order, wanted: int, round_to: int) -> Kept:
    """The channels at the share of units whose number of parameters comes nearest to what is wanted."""

    def at(share: float) -> Kept:
        return [
            _kept(group, units, int(np.count_nonzero(leave <= share)), round_to)
            for group, units, leave in zip(network.groups, order.units, order.leave_at, strict=True)
        ]

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _num_parameters(network, at(middle)) < wanted else (low, middle)
    least = _num_parameters(network, at(0.0))
    if wanted < least and least - wanted > 0.1 * wanted:
        raise ConfigError(
            f"{wanted} parameters cannot be reached: with the fewest channels that the network and the rounding "
            f"allow there are {least}"
        )
    return min((at(low), at(high)), key=lambda kept: abs(_num_parameters(network, kept) - wanted))


def _kept(group: Group, units: npt.NDArray[np.int64], count: int, round_to: int) -> npt.NDArray[np.int64]:
    """The best `count` units, at least one, as channels; a multiple of `round_to` of them where possible."""
    if not len(units):
        return np.arange(group.size)
    step = math.lcm(round_to, group.partition)
    width = max(1, count) * group.partition
    if group.size >= step:
        width = min(group.size, max(step, round(width / step) * step))
    return np.sort(units[: width // group.partition].reshape(-1))


def _whole(network: Network) -> Kept:
    return [np.arange(group.size) for group in network.groups]


def _axes(network: Network) -> dict[str, list[tuple[int, int, int]]]:
    """Parameter -> its axes of channels: axis, index of the group, repeat."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for index, group in enumerate(network.groups):
        for place in group.axes:
            found.setdefault(place.parameter, []).append((place.axis, index, place.repeat))
    return found


def _entries(kept: npt.NDArray[np.int64], repeat: int) -> npt.NDArray[np.int64]:
    return (kept[:, None] * repeat + np.arange(repeat)).reshape(-1)


def _shapes(network: Network, kept: Kept) -> dict[str, tuple[int, ...]]:
    axes = _axes(network)
    found = {}
    for name, whole in network.shapes.items():
        shape = list(whole)
        for axis, index, repeat in axes.get(name, []):
            shape[axis] = len(kept[index]) * repeat
        found[name] = tuple(shape)
    return found


def _num_parameters(network: Network, kept: Kept) -> int:
    return sum(math.prod(shape) for shape in _shapes(network, kept).values())


def _num_macs(network: Network, kept: Kept) -> int:
    shapes = _shapes(network, kept)
    return sum(math.prod(shapes[name]) * pixels for name, pixels in network.pixels.items())


def _cut(module: nn.Module, network: Network, kept: Kept) -> nn.Module:
    """A copy of the module without the channels that leave."""
    module = copy.deepcopy(module)
    axes = _axes(network)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, places in axes.items():
        value = tensors[name].data
        for axis, index, repeat in places:
            value = value.index_select(axis, torch.from_numpy(_entries(kept[index], repeat)))
        tensors[name].data = value
    for part in module.modules():  # What they say of themselves; convolutions also compute with `groups`.
        if isinstance(part, nn.Conv2d):
            part.groups = part.groups if part.groups == 1 else _groups(part)
            part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1] * part.groups
        elif isinstance(part, nn.Linear):
            part.out_features, part.in_features = part.weight.shape
        elif isinstance(part, nn.BatchNorm2d):
            part.num_features = len(part.weight)
        elif isinstance(part, nn.GroupNorm):
            part.num_channels = len(part.weight)
    return module


def _groups(part: nn.Conv2d) -> int:
    """Of a depthwise convolution: one for each input channel that is left."""
    return part.weight.shape[0] * part.groups // part.out_channels
