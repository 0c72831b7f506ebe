"""The step graphs that ship with the package, so that a board can measure without torch or onnx.

    python -m tools.bench.graphs      write graphs/<model>.zst of every built-in model anew

Run it after a change of what export writes. A file is the manifest, a zero byte and step.onnx,
compressed; it holds no weights. A test compares each with what export gives.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zstandard

from protocol.artifact import MANIFEST, STEP
from protocol.errors import ConfigError

FOLDER = Path(__file__).with_name("graphs")
CAP_BYTES = 16 * 1024 * 1024  # Of one file, unpacked.


def models(folder: Path = FOLDER) -> list[str]:
    """The models that have a packaged graph."""
    return sorted(path.stem for path in folder.glob("*.zst"))


def read(model: str, folder: Path = FOLDER) -> tuple[bytes, bytes]:
    """Return a model's manifest and step graph.

    Raises:
        ConfigError: no graph of that name is packaged.
    """
    path = folder / f"{model}.zst"
    if model not in models(folder):
        raise ConfigError(
            f"no packaged graph of {model!r}, only of {', '.join(models())}; another model needs torch: "
            "pip install 'sparsefleet[export]', or bring an exported one: --artifact FOLDER"
        )
    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=CAP_BYTES)
    manifest, _, step = raw.partition(b"\0")
    return manifest, step


def pack(folder: Path) -> bytes:
    """Return the manifest and step graph of an artifact folder as a packaged file, unpacked.

    The manifest loses what names this moment: the versions, and the files that are not packaged.
    """
    fields = json.loads((folder / MANIFEST).read_bytes())
    fields["versions"] = {}
    for part in ("files", "memory"):
        fields[part] = {STEP: fields[part][STEP]}
    manifest = json.dumps(fields, indent=1, sort_keys=True).encode()
    return manifest + b"\0" + (folder / STEP).read_bytes()


def write(model: str, folder: Path = FOLDER) -> None:
    """Export a built-in model and write its packaged graph. Once in a process: names count on within one."""
    from edge_client.kernels import library_path
    from export.export import export_model
    from export.models import DEFAULT_INPUT_SHAPE

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        export_model(model, DEFAULT_INPUT_SHAPE[model], 10, Path(scratch) / "artifact", library_path())
        packed = zstandard.ZstdCompressor(level=19).compress(pack(Path(scratch) / "artifact"))
    (folder / f"{model}.zst").write_bytes(packed)
    print(f"{folder / model}.zst: {len(packed):,} bytes", file=sys.stderr)


def main(names: Sequence[str], folder: Path = FOLDER) -> None:
    """Write one model's graph, or those of all built-in models, each in a process of its own."""
    if len(names) == 1:
        write(names[0], folder)
        return
    from export.models import DEFAULT_INPUT_SHAPE

    for model in names or DEFAULT_INPUT_SHAPE:
        subprocess.run([sys.executable, "-m", "tools.bench.graphs", model], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
