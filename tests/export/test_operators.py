"""Operators beside the built-in models: what has an op of ours, and what stays standard between conversions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edge_client.kernels import library_path
from edge_client.ort import PORTABLE
from edge_client.runtime import COMPRESSED, FULL, open_runtime
from export import parity
from export.composites import SelfAttention
from export.export import export_module
from export.graph import convert
from export.trace import trace
from protocol import artifact as artifacts
from protocol.errors import ArtifactError
from protocol.layout import DENSE, PRUNABLE
from protocol.sparse import SparseVector


def conv(num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Conv2d(num_inputs, num_outputs, 3, padding=1)


def head(num_features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_features, 5)]


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class SqueezeExcite(nn.Module):
    """Scales each map by what a small network makes of the means of all maps (Hu et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.relu(self.left(x)), self.right(x)], 1)


class ClassToken(nn.Module):
    """A learned token in front of the patches; attention as timm writes it, in standard operators."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 3, 3), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        return self.head((x + self.out(mixed))[:, 0])


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(108, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.view(x.size(0), -1))


class Mixer(nn.Module):
    """A small transformer with everything that has an op of ours."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 12, 2, 2), nn.Parameter(torch.randn(1, 9, 12))
        self.norm, self.attention = nn.LayerNorm(12), SelfAttention(12, 3)
        self.widen, self.gelu = nn.Linear(12, 20, bias=False), nn.GELU(approximate)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.gelu(self.widen(x + self.attention(self.norm(x)))).mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, 2)
        self.layer = nn.TransformerEncoderLayer(
            12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def between(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 8), *layers, conv(8, 8), *head(8))


OURS = {
    "view": lambda: Viewed(),
    "linear without a bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5, bias=False)),
    "group norm and leaky relu": lambda: between(nn.GroupNorm(2, 8), nn.LeakyReLU(0.1)),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.InstanceNorm2d(8, affine=True), *head(8)
    ),
    "layer norm of vectors": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.LayerNorm(8)),
    "batch norm of vectors": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(108, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)
    ),
    "gelu on maps": lambda: between(nn.GELU()),
    "transformer": lambda: Mixer(),
    "transformer with tanh": lambda: Mixer("tanh"),
    "PyTorch's encoder layer": lambda: Encoder(),
    "no dropout": lambda: between(nn.Dropout(0.0)),
}
BORDER = {
    "sigmoid": lambda: between(nn.Sigmoid()),
    "tanh": lambda: between(nn.Tanh()),
    "silu": lambda: between(nn.SiLU()),
    "relu6": lambda: between(nn.ReLU6()),
    "hard swish": lambda: between(nn.Hardswish()),
    "hard sigmoid": lambda: between(nn.Hardsigmoid()),
    "softmax": lambda: between(nn.Softmax(1)),
    "log softmax": lambda: nn.Sequential(conv(3, 8), *head(8), nn.LogSoftmax(1)),
    "normalized input": lambda: nn.Sequential(Function(lambda x: (x - 0.5) / 0.25), conv(3, 8), *head(8)),
    "squeeze and excite": lambda: between(SqueezeExcite()),
    "concatenation": lambda: nn.Sequential(Branches(), conv(8, 8), *head(8)),
    "class token": lambda: ClassToken(),
    "gated": lambda: nn.Sequential(
        conv(3, 8), Function(lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1])), *head(4)
    ),
    "slices": lambda: between(Function(lambda x: x[:, :, 1:5] * x[:, :, -4:])),
    "powers": lambda: between(Function(lambda x: (x.pow(2) + 0.1).sqrt() + x.exp() * 0.1 + x.abs().log1p())),
    "padding": lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 0, 1)), conv(3, 8), *head(8)),
    "mean of channels": lambda: between(Function(lambda x: x - x.mean(1, keepdim=True))),
    "products of activations": lambda: nn.Sequential(
        conv(3, 8),
        Function(lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2)),
        nn.Flatten(),
        nn.Linear(64, 5),
    ),
    "relu among standard operators": lambda: between(nn.Tanh(), nn.ReLU(), nn.Sigmoid()),
}


@pytest.mark.parametrize("name", [*OURS, *BORDER])
def test_operators_have_the_gradients_of_pytorch_and_run_in_evaluation(name, tmp_path):
    torch.manual_seed(0)
    module = (OURS | BORDER)[name]()
    manifest = export_module(module, name, (3, 6, 6), tmp_path / "a", library_path()).manifest
    domains = {operator.partition("::")[0] for operator in manifest.operators}
    assert domains <= {"ai.onnx", "sparsefleet", "com.microsoft"}
    if name in OURS:
        assert {o for o in manifest.operators if o.startswith("ai.onnx")} <= {
            f"ai.onnx::{op}" for op in ("Div", "Identity", "Sum")
        }
    flat = artifacts.weights((tmp_path / "a" / artifacts.INITIAL).read_bytes(), manifest.layout)
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a" / artifacts.EVAL), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"x": x, **manifest.layout.views(flat)})
    np.testing.assert_allclose(logits, module.eval()(torch.from_numpy(x)).detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["transformer", "group norm and leaky relu", "class token", "gated"])
def test_saved_activations_give_the_same_gradients(name, tmp_path):
    torch.manual_seed(0)
    manifest = export_module(
        OURS.get(name, BORDER.get(name))(), name, (3, 6, 6), tmp_path, library_path()
    ).manifest
    flat = artifacts.weights((tmp_path / artifacts.INITIAL).read_bytes(), manifest.layout)
    mask = parity.random_mask(manifest.layout, 0.5, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((19, 3, 6, 6)).astype(np.float32)
    gradients = []
    for saved in (FULL, COMPRESSED):
        runtime = open_runtime(PORTABLE, manifest, tmp_path, library_path(), threads=1, saved=saved)
        runtime.bind(SparseVector.of(flat, mask))
        runtime.step((x, np.arange(19) % 5))
        gradients.append(runtime.gradient)
    np.testing.assert_array_equal(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "group norm and leaky relu"])
def test_twenty_steps_of_training_follow_pytorch(name, tmp_path):
    """SGD at 10 % density, beside PyTorch in float64 with the same mask."""
    torch.manual_seed(0)
    module = OURS[name]()
    manifest = export_module(module, name, (3, 6, 6), tmp_path / "a", library_path()).manifest
    layout = manifest.layout
    flat = artifacts.weights((tmp_path / "a" / artifacts.INITIAL).read_bytes(), layout)
    rng = np.random.default_rng(0)
    mask = parity.random_mask(layout, 0.1, rng)
    runtime = open_runtime(PORTABLE, manifest, tmp_path / "a", library_path(), threads=2)
    runtime.bind(SparseVector.of(flat, mask))
    kept = np.zeros(layout.size, np.float32)
    kept[mask.indices] = 1.0
    masks = {name: torch.from_numpy(view) for name, view in layout.views(kept).items()}
    module = module.double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(20):
        x, labels = rng.standard_normal((24, 3, 6, 6)).astype(np.float32), rng.integers(0, 5, 24)
        loss = runtime.step((x, labels))
        runtime.values -= np.float32(0.1) * runtime.gradient
        with torch.no_grad():
            for parameter_name, parameter in module.named_parameters():
                parameter *= masks[parameter_name]
        optimizer.zero_grad()
        expected = nn.functional.cross_entropy(module(torch.from_numpy(x).double()), torch.from_numpy(labels))
        expected.backward()
        optimizer.step()
        assert abs(loss - expected.item()) < 1e-3 * abs(expected.item())
    trained = layout.flatten({name: p.detach().numpy() for name, p in module.named_parameters()})
    np.testing.assert_allclose(runtime.values, trained[mask.indices], rtol=1e-3, atol=1e-4)


def conversions(module: nn.Module) -> Counter[str]:
    return Counter(node.op_type for node in convert(trace(module, (3, 6, 6))).model.graph.node)


def test_neighbouring_standard_operators_share_their_conversions():
    """One Unpack before the region and one Pack behind it, and the first Pack and the last Unpack."""
    counts = conversions(between(nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.ReLU6()))
    assert (counts["Pack"], counts["Unpack"]) == (2, 2)
    # Beside a convolution, Relu has an op of ours and costs no conversion.
    assert conversions(between(nn.ReLU()))["Pack"] == 1
    # An activation that two standard operators read is converted once.
    counts = conversions(between(Function(lambda x: torch.tanh(x) * torch.sigmoid(x))))
    assert (counts["Pack"], counts["Unpack"]) == (2, 2)


def test_what_is_trained_in_a_standard_operator_is_never_pruned():
    layout = convert(trace(ClassToken(), (3, 6, 6))).layout
    assert layout.by_name["token"].role == DENSE
    assert layout.by_name["qkv.weight"].role == PRUNABLE


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.ELU()), "operator Elu"),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(432, 5)), "operator Resize"),
        (nn.Sequential(conv(3, 8), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(288, 5)), "DepthToSpace"),
        (
            nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(68, 5)),
            "1-dimensional kernel",
        ),
        (
            nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(108, 5)),
            "BatchNormalization",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.LayerNorm(108, bias=False), nn.Linear(108, 5)),
            "both scale and bias",
        ),
        (nn.Sequential(nn.LayerNorm((3, 6, 6)), nn.Flatten(), nn.Linear(108, 5)), "but the last axis"),
        (nn.Sequential(nn.Flatten(2), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(108, 5)), r"\[N, C, L\]"),
        (nn.Sequential(conv(3, 8), nn.LeakyReLU(-0.1), *head(8)), "negative slope"),
        (nn.Sequential(Function(lambda x: x[:, :, ::2]), conv(3, 8), *head(8)), None),
        (between(Function(lambda x: x[:, :, ::2])), "steps other than 1"),
        (between(Function(lambda x: x[:, [0, 2, 1, 3, 4, 5, 6, 7]])), "more than one index"),
    ],
)
def test_what_has_no_gradient_is_refused_by_name(module, said, tmp_path):
    """A slice of the input itself needs no gradient, and is taken."""
    if said is None:
        export_module(module, "m", (3, 6, 6), tmp_path / "a", library_path())
        return
    with pytest.raises(ArtifactError, match=said):
        export_module(module, "m", (3, 6, 6), tmp_path / "a", library_path())


def test_buffers_are_constants():
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
            self.rest = nn.Sequential(conv(3, 4), *head(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(x - self.mean)

    converted = convert(trace(Normalized(), (3, 6, 6)))
    assert [p.name for p in converted.layout.pieces] == [
        "rest.0.weight",
        "rest.3.weight",
        "rest.0.bias",
        "rest.3.bias",
    ]


def test_a_batch_size_that_is_a_python_number_is_refused():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(108, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.reshape(2, 108))

    with pytest.raises(ArtifactError, match="does not run with a batch of 3"):
        trace(Fixed(), (3, 6, 6))
