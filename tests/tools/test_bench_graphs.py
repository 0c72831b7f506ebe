"""The packaged step graphs are what export writes today; `python -m tools.bench.graphs` makes them so."""

from __future__ import annotations

import pytest

from edge_client.kernels import library_path
from export.export import export_model
from export.models import DEFAULT_INPUT_SHAPE
from protocol import artifact
from protocol.errors import ConfigError
from tools.bench import graphs

SLOW = {"resnet8", "resnet18", "vgg19"}
MODELS = [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in DEFAULT_INPUT_SHAPE]


@pytest.mark.parametrize("model", MODELS)
def test_a_packaged_graph_is_what_export_writes(model, tmp_path):
    export_model(model, DEFAULT_INPUT_SHAPE[model], 10, tmp_path / "artifact", library_path())
    manifest, step = graphs.read(model)
    assert manifest + b"\0" + step == graphs.pack(tmp_path / "artifact"), "run: python -m tools.bench.graphs"
    assert artifact.parse(manifest).model == model


def test_every_built_in_model_is_packaged_and_no_other():
    assert graphs.models() == sorted(DEFAULT_INPUT_SHAPE)
    with pytest.raises(ConfigError, match=r"only of cnn, .* --artifact"):
        graphs.read("nope")
