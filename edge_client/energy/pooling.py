"""Phases that are too short for the sensor are measured together, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_client.energy.source import About
from edge_client.energy.window import Energy


@dataclass(frozen=True)
class Measured:
    """One phase's energy."""

    phase: str
    begin_s: float
    energy: Energy | None
    pooled: str = ""  # The phases measured as one, joined by "+".

    @property
    def duration_s(self) -> float:
        """Of a phase with a figure."""
        return self.energy.duration_s if self.energy is not None else 0.0


def pool(phases: Sequence[Measured], about: About) -> list[Measured]:
    """Share the joules of neighbours that the sensor cannot tell apart, by their durations.

    The sum is theirs; the split is not measured, so each share is as uncertain as it is large. A
    phase without such a neighbour is pooled with itself.
    """
    done: list[Measured] = []
    group: list[Measured] = []
    for one in [*phases, None]:
        is_short = one is not None and one.energy is not None and one.duration_s < about.resolves_s
        follows = (
            one is not None
            and group
            and one.begin_s - (group[-1].begin_s + group[-1].duration_s) < about.resolves_s
        )
        if group and not (is_short and follows):
            done += _shared(group)
            group = []
        if one is not None and is_short:
            group.append(one)
        elif one is not None:
            done.append(one)
    return done


def _shared(group: list[Measured]) -> list[Measured]:
    energies = [one.energy for one in group if one.energy is not None]
    duration_s = sum(energy.duration_s for energy in energies)
    if duration_s <= 0:
        return group
    name = "+".join(one.phase for one in group)
    total_j, raw_j = sum(e.energy_j for e in energies), sum(e.raw_j for e in energies)
    shares = []
    for one, energy in zip(group, energies, strict=True):
        share = energy.duration_s / duration_s
        part = Energy(total_j * share, raw_j * share, abs(total_j * share), energy.duration_s)
        shares.append(replace(one, energy=part, pooled=name))
    return shares
