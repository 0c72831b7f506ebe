"""Fault row 29: a federation of real processes that lives with a random fault every ten seconds.

SPARSEFLEET_SOAK_S is its length (`make soak`: two hours); otherwise it is a minute with fewer clients. Half of
the clients are never killed, and the coordinator only in the first third, so that memory can be followed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from coordinator.report import read_csv
from tests.conftest import USERS, Federation
from tests.faults.memory import resident_bytes
from tests.faults.test_federations import await_rounds, begin, count, home, prepared, rounds_closed  # noqa: F401
from tools.chaos.proxy import FaultProxy

SOAK_S = float(os.environ.get("SPARSEFLEET_SOAK_S", "60"))
GATE_S = 7200.0
CLIENTS = 20 if SOAK_S >= 300 else 6
EVERY_S = 10.0
WARM_UP = (
    0.25  # Of the soak, from a process's start: it imports, caches fill, and allocators find their size.
)
SLOPE_MB_PER_H = 1.0


class Samples:
    """Memory and open files of processes that live on."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, int], list[tuple[float, int, int]]] = defaultdict(list)

    def take(self, processes: dict[str, int], now_s: float) -> None:
        for name, pid in processes.items():
            try:
                files = psutil.Process(pid).num_fds()
                self.of[name, pid].append((now_s, resident_bytes(pid), files))
            except (psutil.Error, FileNotFoundError, AssertionError):
                continue  # It was killed just now.

    def slopes(self, end_s: float) -> dict[str, tuple[float, float, int]]:
        """MB an hour, growth in MB, and growth of open files of whoever lived from its warm-up to the end.

        Growth is from the median of the first half to that of the second: a coordinator that decodes six updates at
        once has 25 MB more for a moment.
        """
        found = {}
        for (name, _), series in self.of.items():
            kept = np.array([one for one in series if one[0] >= series[0][0] + WARM_UP * end_s])
            if len(kept) >= 3 and series[0][0] <= 0.4 * end_s and series[-1][0] >= 0.8 * end_s:
                seconds, memory, files = kept.T
                slope = np.polyfit(seconds, memory, 1)[0] * 3600 / 1e6
                half = len(files) // 2
                memory_growth, file_growth = (
                    np.median(of[half:]) - np.median(of[:half]) for of in (memory, files)
                )
                found[name] = (float(slope), float(memory_growth) / 1e6, int(file_growth))
        return found


def running(one: Federation) -> dict[str, int]:
    """The ids of all processes of a federation."""
    assert one.coordinator is not None
    return {
        **{name: process.pid for name, process in one.clients.items()},
        "coordinator": one.coordinator.pid,
    }


class Chaos:
    """What may happen, chosen by chance."""

    def __init__(self, one: Federation, broker, proxy: FaultProxy, draw: random.Random) -> None:
        self.one, self.broker, self.proxy, self.draw = one, broker, proxy, draw
        self.done: list[str] = []
        self.acts: list[Callable[[], None]] = [
            self.kill_client,
            self.stop_client,
            self.restart_broker,
            lambda: self.proxy.cut(self.draw.uniform(0, 5)),
            lambda: self.proxy.stall(self.draw.uniform(1, 8)),
            *(lambda name=name, value=value: self.passing(name, value) for name, value in PASSING.items()),
        ]

    def act(self, may_kill_coordinator: bool) -> None:
        acts = [*self.acts, self.kill_coordinator] if may_kill_coordinator else self.acts
        self.draw.choice(acts)()

    def kill_client(self) -> None:
        number = self.draw.randrange(CLIENTS // 2)
        self.one.kill(number)
        self.one.start_client(number, "--energy", "none")

    def stop_client(self) -> None:
        process = self.one.clients[f"client-{self.draw.randrange(CLIENTS):03}"]
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)

    def restart_broker(self) -> None:
        self.broker.stop()
        time.sleep(self.draw.uniform(0, 2))
        self.broker.start()

    def kill_coordinator(self) -> None:
        assert self.one.coordinator is not None
        self.one.coordinator.kill()
        self.one.coordinator.communicate()
        self.one.start_coordinator("--resume", str(self.one.out), password=USERS["coordinator"])

    def passing(self, name: str, value: float) -> None:
        self.proxy.set(name, value)
        time.sleep(4)
        self.proxy.set(name, 0)


PASSING = {"lose": 0.1, "duplicate": 0.5, "reorder": 0.3, "delay": 0.3, "loss": 0.05, "rate": 500_000}


@pytest.mark.slow
@pytest.mark.mosquitto
def test_a_federation_lives_with_a_fault_every_ten_seconds(fault, mosquitto, home, federate):  # noqa: F811
    row, samples, seed = fault(29), Samples(), random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    with FaultProxy("127.0.0.1", mosquitto.port, seed=seed) as proxy:
        one = prepared(federate(home, CLIENTS), mosquitto, 100_000, proxy, quorum=0.5, deadline_s=45)
        begin(one)
        await_rounds(one, 2, 300)
        chaos = Chaos(one, mosquitto, proxy, random.Random(seed))
        begin_s = time.monotonic()
        while (now_s := time.monotonic() - begin_s) < SOAK_S:
            samples.take(running(one), now_s)
            chaos.act(may_kill_coordinator=now_s < SOAK_S / 3)
            samples.take(running(one), time.monotonic() - begin_s)
            row.trials += 1
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - begin_s - now_s)))
            assert one.coordinator.poll() is None, one.coordinator.communicate()[1][-5000:]
        proxy.clear()
        await_rounds(one, rounds_closed(one) + 2, 180)
        assert all(process.poll() is None for process in one.clients.values()), one.logs()[-5000:]
        one.coordinator.send_signal(signal.SIGINT)
        one.coordinator.communicate(timeout=60)
    found = count(one)
    row.lost, row.double, row.is_partial = found.lost, found.double, SOAK_S < GATE_S
    numbers = [int(line["round_number"]) for line in read_csv(one.out / "rounds.csv")]
    slopes = samples.slopes(SOAK_S)
    steepest = max(slopes, key=lambda name: slopes[name][0])
    sys.stdout.write(
        f"{row.trials} faults, {len(numbers)} rounds, {found}; steepest {steepest}: {slopes[steepest]}\n"
    )
    row.grew(max(growth for _, growth, _ in slopes.values()) * 1e6)
    assert numbers == list(range(len(numbers)))  # Every round is accounted for, and none twice.
    assert (found.lost, found.double) == (0, 0)
    assert found.accepted > 0
    assert "coordinator" in slopes
    assert len(slopes) >= CLIENTS // 2
    assert all(files <= 2 for _, _, files in slopes.values()), slopes
    if SOAK_S >= 3600:  # Within minutes, a page more or less is a slope.
        assert all(slope <= SLOPE_MB_PER_H for slope, _, _ in slopes.values()), slopes
    else:
        assert all(growth <= 25 for _, growth, _ in slopes.values()), slopes
