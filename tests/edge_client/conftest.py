"""Artifacts to train on: exported once for all tests of the client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Artifact = Callable[[str], Path]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a built-in model's artifact folder."""
    pytest.importorskip("torch")
    from edge_client.kernels import library_path
    from export.export import export_model
    from export.models import DEFAULT_INPUT_SHAPE

    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            export_model(name, DEFAULT_INPUT_SHAPE[name], 10, folder / name, library_path())
        return folder / name

    return make
