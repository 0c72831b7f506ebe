from __future__ import annotations

import importlib
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edge_client.kernels import library_path
from export import parity
from export.artifacts import generate
from export.export import export_model, export_module
from export.fuse import fuse
from export.graph import convert
from export.lower import lower
from export.models import DEFAULT_INPUT_SHAPE, builder
from export.trace import trace
from protocol import artifact as artifacts
from protocol.errors import ArtifactError, ConfigError
from protocol.layout import PRUNABLE, STATISTIC

SMALL = ["mlp", "lenet", "cnn"]
LARGE = ["resnet8", "resnet8_gn", "resnet12_gn", "resnet18", "vgg19", "vit"]
PARAMETERS = {
    "lenet": 61_706,
    "cnn": 66_154,
    "mlp": 1_863_690,
    "resnet8": 1_227_594,
    "resnet8_gn": 1_227_594,
    "resnet12_gn": 780_266,
    "resnet18": 11_173_962,
    "vgg19": 20_035_018,
    "vit": 2_693_194,
}


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_built_in_model_has_the_gradients_of_pytorch(name, monkeypatch, tmp_path):
    """Loss, every gradient at the mask, and batch statistics; PyTorch in float64 is the truth."""
    monkeypatch.setattr(parity, "DENSITIES", (1.0, 0.5, 0.1, 0.02))
    exported = export_model(name, DEFAULT_INPUT_SHAPE[name], 10, tmp_path / "artifact", library_path())
    assert exported.worst_difference < 1e-4
    assert exported.manifest.layout.num_trainable == PARAMETERS[name]
    assert artifacts.read(tmp_path / "artifact").digest == exported.manifest.digest
    assert set(exported.manifest.files) == set(artifacts.FILES)


def lowered(module: nn.Module, shape: tuple[int, ...]):
    converted = convert(trace(module, shape))
    training = generate(converted, library_path()).training
    return converted, fuse(lower(training, converted.layout, converted.sizes))


def check(module: nn.Module, converted, step: onnx.ModelProto) -> float:
    layout = converted.layout
    flat = layout.flatten({k: onnx.numpy_helper.to_array(v) for k, v in converted.weights.items()})
    return parity.check(step, module, layout, flat, converted.num_classes, library_path())


@pytest.mark.parametrize(
    ("op_type", "attribute", "value"),
    [
        ("AveragePoolGrad", "count_include_pad", 1),
        ("BatchNorm", "epsilon", 0.1),
        ("SparseConvGrad", "pad", 0),
    ],
)
def test_a_graph_that_is_not_the_network_is_refused(op_type, attribute, value):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    converted, step = lowered(module, (1, 8, 8))
    assert check(module, converted, step) < 1e-4
    for node in step.graph.node:
        if node.op_type == op_type:
            found = next(a for a in node.attribute if a.name == attribute)
            found.CopyFrom(onnx.helper.make_attribute(attribute, value))
    with pytest.raises(Exception, match=r"differs from PyTorch|dy has shape"):
        check(module, converted, step)


def test_a_relu_that_does_nothing_is_refused():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    converted, step = lowered(module, (1, 4, 4))
    relu = next(node for node in step.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Identity", ""
    for node in step.graph.node:  # Else its output is not among the kinks, and the gradient gives it away.
        assert node.op_type != "Relu"
    with pytest.raises(ArtifactError, match="fewer ReLUs"):
        check(module, converted, step)


def separable(num_inputs: int, num_outputs: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution (Howard et al., 2017)."""
    return [
        nn.Conv2d(num_inputs, num_inputs, 3, stride, 1, groups=num_inputs, bias=False),
        nn.BatchNorm2d(num_inputs),
        nn.ReLU(),
        nn.Conv2d(num_inputs, num_outputs, 1, bias=False),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU(),
    ]


def test_depthwise_and_grouped_convolutions_have_the_gradients_of_pytorch(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *separable(8, 16, 1),
        *separable(16, 24, 2),
        nn.Conv2d(24, 12, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    exported = export_module(module, "mobile", (3, 9, 9), tmp_path / "a", library_path())
    assert exported.worst_difference < 1e-4
    depthwise = exported.manifest.layout.by_name["1.weight"]
    assert (depthwise.role, depthwise.shape) == (PRUNABLE, (8, 1, 3, 3))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(x, 1)
        return self.fc(self.fc(x))


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softplus()), "Softplus.*operators.md"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)), "Dropout"),
        (nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(16, 3)), "affine=True"),
        (nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(8, 3)), "dilation"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, stride=(1, 2)), nn.Flatten(), nn.Linear(4, 3)), "stride"),
        (nn.Sequential(nn.MaxPool2d(3, ceil_mode=True), nn.Flatten(), nn.Linear(4, 3)), "ceil_mode"),
        (Shared(), "used twice"),
        (nn.Conv2d(1, 2, 3), "logits"),
        (nn.Linear(7, 3), "cannot export"),
    ],
    ids=[
        "softplus",
        "dropout",
        "instance norm",
        "dilation",
        "stride",
        "ceil",
        "shared",
        "no logits",
        "wrong shape",
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(module, said, tmp_path):
    with pytest.raises(ArtifactError, match=said):
        export_module(module, "m", (1, 4, 4), tmp_path / "artifact", library_path())
    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_graph_is_the_module_in_evaluation_mode(tmp_path):
    torch.manual_seed(0)
    module = builder("cnn")((1, 8, 8), 10)
    module(torch.randn(64, 1, 8, 8))  # Running statistics that are not the initial ones.
    manifest = export_module(module, "cnn", (1, 8, 8), tmp_path / "a", library_path()).manifest
    flat = artifacts.weights((tmp_path / "a" / artifacts.INITIAL).read_bytes(), manifest.layout)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a" / artifacts.EVAL), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"x": x, **manifest.layout.views(flat)})
    np.testing.assert_allclose(logits, module.eval()(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_roles_follow_from_the_layers():
    layout = convert(trace(builder("cnn")((1, 8, 8), 10), (1, 8, 8))).layout
    assert [p.name for p in layout.of_role(PRUNABLE)] == ["0.weight", "3.weight", "7.weight", "11.weight"]
    assert len(layout.of_role(STATISTIC)) == 6


def test_a_users_own_function_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    exported = export_model("mine:net", (1, 4, 4), 3, tmp_path / "artifact", library_path())
    assert exported.manifest.layout.num_trainable == 16 * 3 + 3
    for name in ("mine:other", "nowhere:net"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            builder(name)
    sys.modules.pop("mine", None)


def test_an_artifact_does_not_depend_on_what_was_exported_before(tmp_path):
    first, second = (
        export_model("cnn", (1, 8, 8), 10, tmp_path / name, library_path()).manifest for name in "ab"
    )
    assert first.digest == second.digest


def test_a_folder_that_is_no_artifact_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is no artifact"):
        export_model("cnn", (1, 8, 8), 10, tmp_path, library_path())
    assert (tmp_path / "precious.txt").read_text() == "mine"
