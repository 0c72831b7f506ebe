"""The compiled kernels: where the shared library is. It is loaded by ONNX Runtime, never by Python.

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))

`reference.py` says in NumPy what every op means. Neither file imports onnxruntime.
"""

import os
import sys
from pathlib import Path

__all__ = ["library_path"]


def library_path() -> Path:
    """Return the shared library with the ops, which the build leaves beside this file.

    The variable SPARSEFLEET_LIBRARY names another one: of another architecture, or built with sanitizers.

    Raises:
        FileNotFoundError: if it has not been built. There is no slower substitute to fall back to:
            a run on reference code would report times that mean nothing.
    """
    named = os.environ.get("SPARSEFLEET_LIBRARY")
    if named:
        path = Path(named)
        if not path.exists():
            raise FileNotFoundError(f"SPARSEFLEET_LIBRARY={named}: there is no such file")
        return path
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    path = Path(__file__).with_name(f"libsparsefleet_ops{suffix}")
    if not path.exists():
        raise FileNotFoundError(f"{path} has not been built; run `make` in the root of the repository")
    return path
