"""The rules of ARCHITECTURE.md, as tests: who may import whom, and where heavy libraries may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("protocol", "edge_client", "coordinator", "export", "device_profiles", "tools")
MAX_LINES = 450  # Most have 50 to 250; a longer one holds one idea that did not come apart.

MAY_IMPORT = {
    "protocol": {"protocol"},
    "device_profiles": {"device_profiles", "protocol.errors"},
    "edge_client": {"edge_client", "protocol", "device_profiles"},
    "coordinator": {"coordinator", "protocol", "device_profiles"},
    "export": {"export", "protocol", "device_profiles"},
    "tools": set(OURS),
}

# Where a library may be imported: folders end in a slash.
ONLY_IN = {
    "torch": ("export/", "tools/bench/", "tools/lab/"),
    "onnxruntime.training": ("export/", "edge_client/module_runtime.py", "tools/bench/"),
    "onnxruntime": (
        "export/",
        "edge_client/ort.py",
        "edge_client/module_runtime.py",
        "coordinator/evaluate.py",
        "tools/bench/",
    ),
    "onnx": ("export/", "coordinator/final_model.py", "edge_client/module_runtime.py", "tools/bench/"),
    "cryptography": ("protocol/identity.py", "coordinator/certificates.py"),
    "paho": ("protocol/mqtt.py", "tools/bench/load.py"),  # A thousand connections in one loop.
    "amqtt": ("coordinator/broker.py",),
    "rich": ("tools/",),
    "sklearn": ("tools/dataset.py",),
    "smbus2": ("edge_client/energy/ina_i2c.py",),
}


def sources() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_packages_import_only_what_they_may():
    found = []
    for path in sources():
        package = path.relative_to(ROOT).parts[0]
        for line, module in imports(path):
            if module.split(".")[0] in OURS and not any(lies_in(module, ok) for ok in MAY_IMPORT[package]):
                # `from protocol import errors` names the package first, and what is meant second.
                if package == "device_profiles" and module == "protocol":
                    continue
                found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_only_where_it_may(library):
    found = []
    for path in sources():
        place = path.relative_to(ROOT).as_posix()
        if not any(place == ok or (ok.endswith("/") and place.startswith(ok)) for ok in ONLY_IN[library]):
            found += [f"{place}:{line} imports {m}" for line, m in imports(path) if lies_in(m, library)]
    assert not found, "\n".join(found)


def test_no_file_has_outgrown_one_idea():
    long = [
        f"{p.relative_to(ROOT)}: {n}" for p in sources() if (n := len(p.read_text().splitlines())) > MAX_LINES
    ]
    assert not long, "\n".join(long)


def test_nothing_executes_data():
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("eval", "exec")
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
        found += [
            f"{path.relative_to(ROOT)}:{n} imports {m}"
            for n, m in imports(path)
            if m in ("pickle", "marshal")
        ]
    assert not found, "\n".join(found)


def test_a_client_loads_without_what_boards_do_not_have():
    code = (
        "import sys, edge_client.daemon, tools.client, tools.cli\n"
        "tools.cli._parser()\n"
        "print([m for m in ('torch', 'onnx', 'amqtt', 'rich', 'coordinator', 'export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] in ("[]", "['onnx']"), (
        done.stdout
    )  # The training build brings onnx.
