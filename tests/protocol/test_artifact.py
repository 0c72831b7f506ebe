from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from protocol.artifact import FILES, MANIFEST, dump, parse, read, weights
from protocol.errors import ArtifactError
from protocol.layout import PRUNABLE, Layout

LAYOUT = Layout.of([("w", (3,), PRUNABLE)])


def write(folder: Path) -> None:
    contents = {name: name.encode() for name in FILES}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    files = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for n, d in contents.items()}
    fields = {"model": "m", "input_shape": [1], "num_classes": 2, "layout": LAYOUT.to_json(), "files": files}
    (folder / MANIFEST).write_bytes(
        dump({**fields, "statistic_momentum": {}, "operators": [], "versions": {}})
    )


def test_a_whole_folder_is_read(tmp_path):
    write(tmp_path)
    found = read(tmp_path)
    assert found.layout == LAYOUT
    assert found.digest == hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()


def test_a_missing_manifest_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ArtifactError, match="sparsefleet export"):
        read(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_named(name, tmp_path):
    write(tmp_path)
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(ArtifactError, match=f"{name} has SHA-256"):
        read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read(tmp_path)


def test_another_format_says_which(tmp_path):
    write(tmp_path)
    fields = json.loads((tmp_path / MANIFEST).read_bytes())
    with pytest.raises(ArtifactError, match="format 99"):
        parse(json.dumps({**fields, "format": 99}).encode())


def test_every_missing_field_and_truncation_is_an_artifact_error(tmp_path):
    write(tmp_path)
    raw = (tmp_path / MANIFEST).read_bytes()
    fields = json.loads(raw)
    for name in fields:
        with pytest.raises(ArtifactError):
            parse(json.dumps({k: v for k, v in fields.items() if k != name}).encode())
    for end in range(0, len(raw) - 1, 7):
        with pytest.raises(ArtifactError):
            parse(raw[:end])


def test_initial_weights_are_checked():
    good = np.arange(3, dtype="<f4")
    np.testing.assert_array_equal(weights(good.tobytes(), LAYOUT), good)
    with pytest.raises(ArtifactError, match="needs 12"):
        weights(good.tobytes()[:-1], LAYOUT)
    with pytest.raises(ArtifactError, match="NaN"):
        weights(np.array([1, np.nan, 2], "<f4").tobytes(), LAYOUT)


def test_memory_is_read_and_an_old_manifest_has_none(tmp_path):
    write(tmp_path)
    raw = (tmp_path / MANIFEST).read_bytes()
    assert parse(raw).memory == {}
    fields = json.loads(raw)
    fields["memory"] = {"step.onnx": {"num_nodes": 3, "activation_bytes": [10, 21]}}
    graph = parse(dump({k: v for k, v in fields.items() if k != "format"})).memory["step.onnx"]
    # 1 to 16 examples are one block, 17 to 32 two; beyond the list in proportion.
    assert [graph.activations(n) for n in (1, 16, 17, 32, 33)] == [10, 10, 21, 21, 32]


@pytest.mark.parametrize("bytes_", [[], [-1], "many", None])
def test_memory_without_meaning_is_a_damaged_manifest(bytes_, tmp_path):
    write(tmp_path)
    fields = json.loads((tmp_path / MANIFEST).read_bytes())
    fields["memory"] = {"step.onnx": {"num_nodes": 3, "activation_bytes": bytes_}}
    with pytest.raises(ArtifactError, match="damaged"):
        parse(dump({k: v for k, v in fields.items() if k != "format"}))
