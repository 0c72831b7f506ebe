"""When what happens: a list of faults becomes a list of moments, and a loop lives through them."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from protocol.config import load
from protocol.errors import ConfigError
from tools.chaos import processes
from tools.chaos.faults import MOMENT, SIGNAL, Fault, parse
from tools.chaos.proxy import FaultProxy

STOP_S = 5.0  # Unless the fault says for how long.

log = logging.getLogger(__name__)


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    """A plan file."""

    faults: list[str]
    seed: int = 0
    duration_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ConfigError: unreadable, unknown keys, or a fault that is none.
    """
    plan = load(path, Plan)
    for text in plan.faults:
        parse(text)
    return plan


def live_through(
    faults: Iterable[Fault],
    proxy: FaultProxy | None,
    duration_s: float | None,
    tell: Callable[[float, str], None] = lambda at_s, text: None,
) -> int:
    """Do all of it at its time; return how many signals could not be sent.

    A process that is not there at the moment (its supervisor is just restarting it) is reported and left
    out; anything else would end the chaos with the first kill. `duration_s` None: until interrupted.

    Raises:
        ConfigError: a fault of packets, links or connections without a proxy.
    """
    moments: list[tuple[float, int, Fault]] = []
    for number, fault in enumerate(faults):
        if proxy is None and fault.name not in SIGNAL:
            raise ConfigError(f"{fault.name} needs --listen and --broker")
        heapq.heappush(moments, (fault.start_s, number, fault))
    ends: list[tuple[float, int, Callable[[], None]]] = []
    begin_s, failures, serial = time.monotonic(), 0, 0
    try:
        while duration_s is None or time.monotonic() - begin_s < duration_s:
            now_s = time.monotonic() - begin_s
            while ends and ends[0][0] <= now_s:
                heapq.heappop(ends)[2]()
            while moments and moments[0][0] <= now_s:
                at_s, number, fault = heapq.heappop(moments)
                serial += 1
                if fault.every_s is not None:
                    heapq.heappush(moments, (at_s + fault.every_s, number, fault))
                try:
                    ending = _begin(fault, proxy)
                except ConfigError as error:
                    failures += 1
                    log.warning("fault left out name=%s reason=%s", fault.name, error)
                    continue
                if ending is not None:
                    length_s = STOP_S if fault.length_s is None else fault.length_s
                    heapq.heappush(ends, (now_s + length_s, serial, ending))
                tell(now_s, f"{fault.name}={fault.process or f'{fault.value:g}'}")
            time.sleep(0.02)
    finally:
        for _, _, ending in ends:  # Leave nothing stopped behind.
            ending()
    return failures


def _begin(fault: Fault, proxy: FaultProxy | None) -> Callable[[], None] | None:
    """Do it, and return how it ends where it does."""
    if fault.name in SIGNAL:
        pid = processes.signal(fault.process, fault.name)
        return _continuing(pid) if fault.name == "stop" else None
    assert proxy is not None
    if fault.name in MOMENT:
        {"cut": proxy.cut, "stall": proxy.stall}[fault.name](fault.value)
        return None
    proxy.set(fault.name, fault.value, fault.direction)
    if fault.length_s is None:
        return None
    return lambda: proxy.set(fault.name, 0.0, fault.direction)


def _continuing(pid: int) -> Callable[[], None]:
    def ending() -> None:
        try:
            processes.signal(str(pid), "continue")
        except ConfigError:
            log.info("stopped process is gone pid=%d", pid)

    return ending
