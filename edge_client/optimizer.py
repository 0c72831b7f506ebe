"""SGD over the stored weights, in the op library: one pass over memory instead of NumPy's seven."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from edge_client.kernels import library_path
from protocol.layout import Vector
from protocol.messages import Training


@cache
def _function() -> Any:
    """The op library's, loaded once: a round may be short."""
    function = ctypes.CDLL(str(library_path())).sparsefleet_sgd
    function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64, *[ctypes.c_float] * 3]
    function.restype = None
    return function


class Sgd:
    """SGD with momentum and weight decay as torch.optim.SGD defines it; the momentum starts at zero."""

    def __init__(self, training: Training, num_weights: int) -> None:
        """Take the rates from the task; hold one float of velocity for each weight."""
        self._function = _function()
        self._rates = training.learning_rate, training.momentum, training.weight_decay
        self._velocity = np.zeros(num_weights, np.float32)

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Update `weights` in place. Both are contiguous float32 of as many elements as were announced.

        Raises:
            ValueError: they are not.
        """
        for array in (weights, gradient):
            if (
                array.dtype != np.float32
                or array.shape != self._velocity.shape
                or not array.flags.c_contiguous
            ):
                raise ValueError(
                    f"expected {self._velocity.size} contiguous float32, got {array.dtype} {array.shape}"
                )
        pointers = (array.ctypes.data for array in (weights, gradient, self._velocity))
        self._function(*pointers, weights.size, *self._rates)
