"""Narrowed networks: the same function as the whole one without those channels, and consistent widths."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.kernels import library_path
from export.export import export_model
from export.graph import convert
from export.models import DEFAULT_INPUT_SHAPE, MODELS
from export.narrow import Widths, narrow
from export.trace import trace
from protocol import artifact as artifacts
from protocol.errors import ArtifactError, ConfigError
from tools.cli import main


class Depthwise(nn.Module):
    """A separable convolution with two outputs for each input, a residual, and a linear layer on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.deep_norm = nn.BatchNorm2d(32)
        self.point = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = self.point(torch.relu(self.deep_norm(self.depthwise(x))))
        return self.fc(torch.flatten(nn.functional.max_pool2d(x + y, 2), 1))


def trained(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Norms and biases that are not at rest, so that the channels differ."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.3, 1.5)
    module.train()
    module(torch.randn(8, *shape))
    return module.eval()


def silenced(module: nn.Module, network, kept) -> nn.Module:
    """The whole module whose removed channels are zero wherever they are written."""
    state = module.state_dict()
    for group, channels in zip(network.groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.size), channels)
        for place in group.axes:
            if place.axis == 0 and "running" not in place.parameter and place.parameter not in group.writers:
                entries = (gone[:, None] * place.repeat + np.arange(place.repeat)).reshape(-1)
                state[place.parameter][entries] = 0.0  # Scales, shifts and biases; also of depthwise ones.
        for writer in group.writers:
            state[writer][gone] = 0.0
    return module


CASES = {
    name: (MODELS[name], DEFAULT_INPUT_SHAPE[name]) for name in ("mlp", "lenet", "cnn", "resnet8", "vgg19")
}
CASES["depthwise"] = (lambda shape, classes: Depthwise(), (3, 8, 8))


@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("resnet8", "vgg19") else ()) for n in CASES]
)
def test_it_computes_what_the_whole_one_does_without_those_channels(name, ranking):
    build, shape = CASES[name]
    module = trained(build(shape, 10), shape)
    found = narrow(module, shape, Widths(0.3, ranking=ranking))
    before, after = found.num_parameters
    assert after == pytest.approx(0.3 * before, rel=0.15)  # Channels are whole.
    assert sum(v.numel() for v in found.module.state_dict().values() if v.dim()) == after
    x = torch.randn(4, *shape)
    with torch.no_grad():
        actual = found.module.eval()(x)
        whole = module(x)
        expected = silenced(module, found.network, found.kept)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, whole, rtol=1e-2)


def test_additions_keep_one_width_in_a_stage_and_every_layer_keeps_a_channel():
    module = MODELS["resnet18"]((3, 32, 32), 10)
    nn.init.constant_(module.bn1.weight, 1e-6)  # Of no importance at all, and so is its whole stage.
    for block in (0, 1):
        nn.init.constant_(module.blocks[block].bn2.weight, 1e-6)
    found = narrow(module, (3, 32, 32), Widths(0.1, "bn-scale", "global"))
    small = found.module
    assert small.conv1.weight.shape[0] == small.blocks[1].conv2.weight.shape[0] == 1
    for stage in (2, 4, 6):
        width = small.blocks[stage].conv2.weight.shape[0]
        assert small.blocks[stage].shortcut[0].weight.shape[0] == width
        assert small.blocks[stage + 1].conv2.weight.shape[0] == width
    assert min(len(kept) for kept in found.kept) >= 1
    assert small.fc.weight.shape[0] == 10
    assert small.conv1.weight.shape[1] == 3


def test_the_most_important_channels_stay():
    module = MODELS["cnn"]((1, 8, 8), 10)
    important = torch.tensor([1, 5, 7, 30])
    with torch.no_grad():
        module[1].weight[important] = 3.0
        module[0].weight[[2, 9, 11, 12]] *= 50.0
    by_scale = narrow(module, (1, 8, 8), Widths(0.02, "bn-scale"))
    assert set(by_scale.kept[1]) <= set(important.tolist())
    by_norm = narrow(module, (1, 8, 8), Widths(0.02))
    assert set(by_norm.kept[1]) <= {2, 9, 11, 12}


def test_scores_from_outside_replace_the_modules_own():
    module = MODELS["cnn"]((1, 8, 8), 10)
    scores = {f"{i}.weight": np.ones(size) for i, size in ((1, 32), (4, 64), (8, 64))}
    scores["1.weight"][[4, 17]] = 9.0
    found = narrow(module, (1, 8, 8), Widths(0.01, "bn-scale"), scores)
    assert set(found.kept[1]) <= {4, 17}


def test_widths_are_multiples_where_layers_are_wide_enough():
    found = narrow(MODELS["lenet"]((1, 28, 28), 10), (1, 28, 28), Widths(0.3, round_to=8))
    after = {name: width for name, _, width, _ in found.widths}
    assert after["0.weight"] < 6  # Of six: no multiple of eight fits.
    assert all(after[name] % 8 == 0 for name in ("3.weight", "7.weight", "9.weight"))
    assert after["11.weight"] == 10


def test_group_norm_keeps_as_many_channels_of_each_group():
    found = narrow(MODELS["resnet8_gn"]((3, 32, 32), 10), (3, 32, 32), Widths(0.2, "l1", "global"))
    for group, kept in zip(found.network.groups, found.kept, strict=True):
        if group.partition == 2:
            assert np.count_nonzero(kept < group.size // 2) * 2 == len(kept)
    found.module(torch.randn(2, 3, 32, 32))


def test_what_mixes_channels_keeps_its_width_and_says_why():
    found = narrow(MODELS["vit"]((3, 32, 32), 10), (3, 32, 32), Widths(0.8))
    reasons = {fixed.split(" ")[0] for _, _, _, fixed in found.widths if fixed}
    assert reasons >= {"the", "AddWeight"}
    narrowed = [(before, after) for _, before, after, fixed in found.widths if not fixed]
    assert narrowed
    assert all(after < before for before, after in narrowed)  # The hidden layers of the blocks.


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        (lambda: Widths(0.0), "share of the parameters"),
        (lambda: Widths(0.5, round_to=0), "multiples of 0"),
        (lambda: Widths(0.5, "taste"), "importance is one of"),
        (lambda: Widths(0.001), "cannot be reached"),
        (lambda: Widths(0.5, "bn-scale"), "has none: use 'l1'"),
    ],
)
def test_what_cannot_be_is_an_error(widths, text):
    with pytest.raises(ConfigError, match=text):
        narrow(MODELS["lenet"]((1, 28, 28), 10), (1, 28, 28), widths())


@pytest.mark.slow
def test_the_artifact_says_where_its_weights_were(tmp_path):
    shape = (1, 8, 8)
    exported = export_model("cnn", shape, 10, tmp_path / "narrow", library_path(), widths=Widths(0.25))
    manifest = artifacts.read(tmp_path / "narrow")
    origin = artifacts.origin((tmp_path / "narrow" / artifacts.ORIGIN).read_bytes(), manifest)
    torch.manual_seed(0)
    whole = convert(trace(MODELS["cnn"](shape, 10), shape))
    assert manifest.origin_size == whole.layout.size == origin.size
    flat = whole.layout.flatten({k: np.asarray(_array(v)) for k, v in whole.weights.items()})
    small = artifacts.weights((tmp_path / "narrow" / artifacts.INITIAL).read_bytes(), manifest.layout)
    np.testing.assert_array_equal(small, flat[origin.indices])
    assert exported.worst_difference < 1e-4

    with pytest.raises(ArtifactError, match="bytes"):
        artifacts.origin(b"1234", manifest)
    with pytest.raises(ArtifactError, match="increasing"):
        artifacts.origin(bytes(4 * manifest.layout.size), manifest)


def _array(tensor):
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


@pytest.mark.slow
def test_the_command_says_what_it_removed(tmp_path, capsys):
    arguments = ["export", "cnn", "--keep", "0.3", "--out", str(tmp_path / "a")]
    assert main([*arguments, "--json"]) == 0
    narrowed = json.loads(capsys.readouterr().out)["narrowed"]
    before, after = narrowed["num_parameters"]
    assert 0.2 * before < after < 0.4 * before
    assert all(row["after"] % 8 == 0 for row in narrowed["widths"] if not row["fixed"])
    assert main(arguments) == 0
    assert "->" in capsys.readouterr().out
    assert main(["export", "cnn", "--keep", "7", "--out", str(tmp_path / "b")]) != 0
    assert "share" in capsys.readouterr().err
