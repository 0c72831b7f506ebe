"""Arrays are read by several threads at once, as a simulation's clients do."""

import ast
import contextlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from protocol.npz import read_arrays


class Cycle:
    """What the garbage collector finds at any time."""

    def __init__(self) -> None:
        self._self = self

    def __del__(self) -> None:
        """Let another thread run."""
        sum(range(50))


@pytest.fixture
def threads_alternate():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_may_read_at_once(tmp_path: Path, threads_alternate: None) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(6).reshape(2, 3), y=np.zeros(2))
    failures: list[Exception] = []

    def read(depth: int) -> None:
        Cycle()
        if depth:
            return read(depth - 1)
        assert read_arrays(path, 1000)["x"][1, 2] == 5

    def work(depth: int) -> None:
        try:
            for _ in range(1000):
                read(depth)
        except SystemError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(depth,)) for depth in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_arrays_are_read_while_another_thread_parses_for_a_traceback(
    tmp_path: Path, threads_alternate: None
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(6).reshape(2, 3))
    is_over = threading.Event()

    def parse() -> None:
        while not is_over.is_set():
            Cycle()
            with contextlib.suppress(SystemError):  # The bug is the interpreter's.
                ast.parse("a[b] + c(d)")

    thread = threading.Thread(target=parse)
    thread.start()
    try:
        for _ in range(3000):
            Cycle()
            assert read_arrays(path, 1000)["x"][1, 2] == 5
    finally:
        is_over.set()
        thread.join()
