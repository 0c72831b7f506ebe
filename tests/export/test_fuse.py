"""Fused step graphs compute what the plain ones compute, and fuse only what nobody else reads."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edge_client.kernels import library_path
from export.artifacts import generate
from export.fuse import fuse
from export.graph import convert
from export.lower import lower
from export.models import builder
from export.parity import feeds, random_mask
from export.trace import trace


def plain_step(module: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    converted = convert(trace(module, shape))
    return converted, lower(generate(converted, library_path()).training, converted.layout)


def run(step, converted, shape, batch=19):
    rng = np.random.default_rng(0)
    flat = converted.layout.flatten({k: numpy_helper.to_array(v) for k, v in converted.weights.items()})
    mask = random_mask(converted.layout, 0.3, rng)
    x = rng.standard_normal((batch, *shape)).astype(np.float32)
    labels = np.arange(batch, dtype=np.int64) % converted.num_classes
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(
        step.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds(converted.layout, flat, mask, x, labels)), strict=True))


def op_types(step):
    return [node.op_type for node in step.graph.node]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cnn", (1, 8, 8)), ("resnet8", (3, 8, 8)), ("resnet8", (3, 12, 12)), ("lenet", (1, 28, 28))],
)
def test_fusing_changes_nothing_but_rounding(name, shape):
    converted, step = plain_step(builder(name)(shape, 10), shape)
    fused = fuse(step)
    before, after = run(step, converted, shape), run(fused, converted, shape)
    assert list(before) == list(after)
    for tensor, value in before.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(after[tensor], value, rtol=1e-3, atol=1e-5 * scale + 1e-7, err_msg=tensor)


def test_a_residual_network_has_no_pass_over_memory_left_to_fuse():
    _, step = plain_step(builder("resnet8")((3, 12, 12), 10), (3, 12, 12))
    found = op_types(fuse(step))
    assert not {"Relu", "ReluGrad", "Add", "Sum", "Identity"} & set(found)
    assert found.count("BatchNormAddRelu") == 3
    assert found.count("BatchNormRelu") == 4
    assert found.count("BatchNorm") == 2  # The shortcuts.
    assert found.count("BatchNormAddReluSumGrad") == 2
    assert found.count("BatchNormReluAgain") == 4


class Pooled(nn.Module):
    """A batch norm and its ReLU behind a pooling of any kind."""

    def __init__(self, pool, size):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), pool
        self.fc = nn.Linear(4 * size * size, 3)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(torch.relu(self.norm(self.conv(x)))), 1))


@pytest.mark.parametrize(
    ("pool", "side", "is_fused"),
    [
        (nn.MaxPool2d(2), 6, True),
        (nn.MaxPool2d(2), 7, False),
        (nn.MaxPool2d(3), 6, False),
        (nn.MaxPool2d(2, stride=1), 6, False),
        (nn.MaxPool2d(2, padding=1), 6, False),
        (nn.AvgPool2d(2), 6, False),
    ],
)
def test_maxima_are_fused_where_each_pixel_is_in_one_window(pool, side, is_fused):
    module = Pooled(pool, pool(torch.zeros(1, 1, side, side)).shape[-1])
    converted, step = plain_step(module, (1, side, side))
    fused = fuse(step)
    assert ("BatchNormReluMaxPoolGrad" in op_types(fused)) is is_fused
    assert ("BatchNormReluMaxPool" in op_types(fused)) is is_fused
    assert {"MaxPool", "MaxPoolGrad"}.isdisjoint(op_types(fused)) or not is_fused
    assert "BatchNormReluMaxPool" not in op_types(fuse(step, are_pools_fused=False))
    before, after = run(step, converted, (1, side, side)), run(fused, converted, (1, side, side))
    for tensor, value in before.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(after[tensor], value, rtol=1e-3, atol=1e-5 * scale + 1e-7, err_msg=tensor)


def test_only_shortcuts_leave_out_the_zeros_of_their_gradients():
    def steps(step, name):
        return [a.i for node in step.graph.node for a in node.attribute if a.name == name]

    _, step = plain_step(builder("resnet8")((3, 12, 12), 10), (3, 12, 12))
    fused = fuse(step)
    assert steps(fused, "dx_step") == [2, 2]
    assert steps(fused, "other_step") == [2, 2]
    assert not steps(step, "dx_step")


class TwoShortcuts(nn.Module):
    """Both of a sum's gradients have zeros between: only one can leave them out."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.b = (nn.Conv2d(4, 4, 1, stride=2) for _ in range(2))
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.fc(torch.flatten(torch.relu(self.a(y)) + self.b(y), 1))


def test_two_shortcuts_of_one_tensor_are_computed_right():
    converted, step = plain_step(TwoShortcuts(), (1, 6, 6))
    fused = fuse(step)
    assert "BatchNormReluSumGrad" in op_types(fused)
    before, after = run(step, converted, (1, 6, 6)), run(fused, converted, (1, 6, 6))
    for tensor, value in before.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(after[tensor], value, rtol=1e-3, atol=1e-5 * scale + 1e-7, err_msg=tensor)


def test_a_recomputed_output_waits_for_the_backward_pass():
    """Its reader in the forward pass is then the last one, so that the runtime can free it."""
    _, step = plain_step(builder("resnet8")((3, 12, 12), 10), (3, 12, 12))
    nodes = list(fuse(step).graph.node)
    loss = next(i for i, node in enumerate(nodes) if node.op_type == "SoftmaxCrossEntropyGrad")
    written = {node.output[0] for node in nodes if node.op_type == "BatchNormRelu"}
    for node in nodes[loss:]:
        assert not written & set(node.input), node.name
    assert all(i > loss for i, node in enumerate(nodes) if node.op_type == "BatchNormReluAgain")


def test_planes_of_whole_pages_keep_their_halo():
    def halos(size):
        _, step = plain_step(builder("cnn")((1, size, size), 10), (1, size, size))
        attributes = [node.attribute for node in fuse(step).graph.node if node.op_type == "SparseConv"]
        return [next(a.i for a in each if a.name == "out_halo") for each in attributes]

    assert halos(8) == [1, 1, 0]  # 8 x 8 pixels of 64 bytes are a page, 4 x 4 are not.
    assert halos(12) == [0, 0, 0]


class Shared(nn.Module):
    """The normalized tensor is read twice: by the ReLU and behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.fc(torch.flatten(torch.relu(y) + y, 1))


class Doubled(Shared):
    """What is added to the normalized tensor is itself."""

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.fc(torch.flatten(torch.relu(y + y), 1))


@pytest.mark.parametrize("module", [Shared, Doubled])
def test_what_others_read_is_not_fused(module):
    converted, step = plain_step(module(), (1, 6, 6))
    fused = fuse(step)
    assert "BatchNorm" in op_types(fused)
    before, after = run(step, converted, (1, 6, 6)), run(fused, converted, (1, 6, 6))
    for tensor, value in before.items():
        np.testing.assert_allclose(after[tensor], value, rtol=1e-4, atol=1e-6, err_msg=tensor)
