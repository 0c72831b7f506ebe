from __future__ import annotations

from pathlib import Path

import pytest

from protocol.methods import METHODS

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name):
    assert f"`{name}`" in (ROOT / "docs" / "methods.md").read_text()
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def test_every_method_is_short_enough_to_read():
    files = [Path(path) for path in (ROOT / "protocol" / "methods").glob("*.py")]
    assert len(files) == len(METHODS) + 1
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 200} == {}
