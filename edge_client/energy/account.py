"""One phase as it is reported: time, bytes, conditions, and joules gross and net with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.energy.conditions import Seen
from edge_client.energy.pooling import Measured
from edge_client.energy.source import About
from edge_client.energy.traffic import Moved
from edge_client.energy.window import Idle
from protocol.messages import Phase


@dataclass
class Span:
    """A phase in progress: bytes and steps are set by whoever moves and makes them; the name may be corrected."""

    name: str
    received_bytes: int = 0
    sent_bytes: int = 0
    num_steps: int = 0
    num_examples: int = 0


@dataclass(frozen=True)
class Closed:
    """What a phase was, but for its energy."""

    span: Span
    cpu_s: float
    duration_s: float
    peak_w: float | None
    coverage: float
    seen: Seen
    meter_cpu_s: float
    warning: str = ""
    moved: Moved = Moved()  # noqa: RUF009  It is frozen.


def phase_of(measured: Measured, closed: Closed, about: About, idle: Idle | None) -> Phase:
    """Return a phase as it is reported; `idle` is what the waiting board draws, None: not measured."""
    energy = measured.energy
    uncertainty_j = net_j = net_uncertainty_j = None
    if energy is not None:
        uncertainty_j = energy.uncertainty_j(about.accuracy)
        if about.is_net:
            net_j, net_uncertainty_j = energy.energy_j, uncertainty_j
        elif idle is not None:
            net_j, net_uncertainty_j = energy.beyond(idle, about.accuracy)
    return Phase(
        phase=measured.phase,
        duration_s=closed.duration_s,
        cpu_s=max(0.0, closed.cpu_s),
        # Noise next to zero may be below it; the device never gave energy back.
        energy_j=None if energy is None else max(0.0, energy.energy_j),
        uncertainty_j=uncertainty_j,
        energy_source=about.name,
        received_bytes=closed.span.received_bytes,
        sent_bytes=closed.span.sent_bytes,
        energy_scope=about.scope,
        energy_raw_j=None if energy is None else energy.raw_j,
        energy_net_j=net_j,
        net_uncertainty_j=net_uncertainty_j,
        power_peak_w=closed.peak_w,
        coverage=None if about.scope == "none" else closed.coverage,
        pooled=measured.pooled,
        temperature_c=closed.seen.temperature_c,
        clock_mhz=closed.seen.clock_mhz,
        throttling=",".join(closed.seen.throttling),
        meter_cpu_s=closed.meter_cpu_s,
        num_steps=closed.span.num_steps,
        num_examples=closed.span.num_examples,
        battery_percent=closed.seen.battery_percent,
        energy_warning=closed.warning,
        disk_read_bytes=closed.moved.disk_read_bytes,
        disk_written_bytes=closed.moved.disk_written_bytes,
        net_received_bytes=closed.moved.net_received_bytes,
        net_sent_bytes=closed.moved.net_sent_bytes,
    )
