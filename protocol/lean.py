"""Import a module without the torch that it would pull in.

The training build's onnxruntime imports torch where it can, 220 MB for an ORTModule that nobody here
uses, and does without where it cannot. So torch is hidden while it is imported. On a board, where
there is no torch, this is an ordinary import.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def import_without_torch(name: str) -> ModuleType:
    """Return the module; if torch is loaded already, there is nothing left to save."""
    if "torch" in sys.modules:
        return importlib.import_module(name)
    sys.modules["torch"] = None  # type: ignore[assignment]  # What makes `import torch` an ImportError.
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torch"]
