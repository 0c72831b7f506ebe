"""The packaged step graphs are what export writes today; `python -m tools.bench.graphs` makes them so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.models import DEFAULT_INPUT_SHAPE
from protocol import artifact
from protocol.errors import ConfigError
from tools.bench import graphs

SLOW = {"resnet12_gn", "resnet8", "resnet8_gn", "resnet18", "vgg19", "vit"}
MODELS = [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in DEFAULT_INPUT_SHAPE]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_packaged_graph_is_what_export_writes(model, tmp_path):
    """In a process of its own: the names that the gradient builder gives count on within one."""
    code = "from pathlib import Path; from tools.bench import graphs;"
    code += f" graphs.write({model!r}, Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    fresh = graphs.read(model, tmp_path)
    assert graphs.read(model) == fresh, "run: python -m tools.bench.graphs"
    assert artifact.parse(fresh[0]).model == model


def test_every_built_in_model_is_packaged_and_no_other():
    assert graphs.models() == sorted(DEFAULT_INPUT_SHAPE)
    with pytest.raises(ConfigError, match=r"only of cnn, .* --artifact"):
        graphs.read("nope")
