"""Who is asked in a round if joules count. Pure: what is known of the devices comes in, the choice goes out.

1. A device rests while its last report, not older than `rest_s`, says that its battery is low, that it is
   hot, or that something slows it; while its next round would exceed its joules of a day; and if it
   reports no joules at all, since nobody could say when they are spent.
2. Of the others those are asked that have spent the least in the last day, so that costly boards are asked
   as much less often as they cost more. Equal ones are drawn.
3. Nobody starves: who has not been asked for PATIENCE times its turn comes first, the longest waiting of all.

A day's budget is exceeded by no more than what one round takes beyond its prediction: a device that has
never reported is predicted by its profile, or as 0 J.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

DAY_S = 86_400.0
PATIENCE = 3
ROUNDING_J = 1e-9  # Of sums of floats.


@dataclass(frozen=True)
class Limits:
    """What the experiment asks for; 0 and infinity are no limits."""

    joules_per_day: float = math.inf
    battery_floor_percent: float = 0.0
    temperature_ceiling_c: float = math.inf
    rest_s: float = 600.0


@dataclass(frozen=True)
class Device:
    """What is known of one device."""

    client_id: str
    reports_joules: bool
    spends: tuple[tuple[float, float], ...] = ()  # When (s) and how much (J), in order of time.
    next_j: float = 0.0  # What its next round takes, as far as it can be predicted.
    last_asked: int = 0  # Round; of a device that was never asked, the one before which it joined.
    seen_s: float = -math.inf  # When the following was reported.
    battery_percent: float | None = None
    temperature_c: float | None = None
    throttling: str = ""

    def spent_j(self, now_s: float) -> float:
        """Return the joules of the last day."""
        return sum(joules for at_s, joules in self.spends if at_s > now_s - DAY_S)


@dataclass(frozen=True)
class Rest:
    """Why a device is not asked, and until when at most: it may say before that it is well."""

    reason: str  # "over budget: ...", "low battery: ...": the part before the colon is one of few.
    until_s: float


@dataclass(frozen=True)
class Choice:
    """Who is asked, and who rests. Who is in neither was not its turn."""

    asked: tuple[str, ...]
    resting: dict[str, Rest]

    @property
    def until_s(self) -> float:
        """When at the latest somebody's rest may be over; infinity: never, as things stand."""
        return min((rest.until_s for rest in self.resting.values()), default=math.inf)


def choose(
    devices: Sequence[Device], count: int, limits: Limits, seed: int, round_number: int, now_s: float
) -> Choice:
    """Return up to `count` devices, sorted by id; the same for the same arguments, in any order of `devices`."""
    rests = {device.client_id: rest(device, limits, now_s) for device in devices}
    able = [device for device in devices if rests[device.client_id] is None]
    turn = math.ceil(len(able) / max(1, count))

    def key(device: Device) -> tuple[float, float, bytes]:
        waited = round_number - device.last_asked
        lot = hashlib.sha256(f"{seed}/energy-cohort/{round_number}/{device.client_id}".encode()).digest()
        return -waited if waited > PATIENCE * turn else 0, device.spent_j(now_s), lot

    asked = sorted(device.client_id for device in sorted(able, key=key)[:count])
    return Choice(tuple(asked), {name: found for name, found in sorted(rests.items()) if found is not None})


def rest(device: Device, limits: Limits, now_s: float) -> Rest | None:
    """Return why a device must rest, None if it need not."""
    if not device.reports_joules:
        return Rest("no joules: set `energy` in the device's configuration to a source it has", math.inf)
    stale_s = device.seen_s + limits.rest_s
    if now_s < stale_s:
        battery, temperature_c = device.battery_percent, device.temperature_c
        if battery is not None and battery < limits.battery_floor_percent:
            return Rest(f"low battery: {battery:.0f} % of {limits.battery_floor_percent:.0f} %", stale_s)
        if temperature_c is not None and temperature_c > limits.temperature_ceiling_c:
            return Rest(f"hot: {temperature_c:.0f} of {limits.temperature_ceiling_c:.0f} °C", stale_s)
        if device.throttling:
            return Rest(f"slowed: {device.throttling}", stale_s)
    over_j = device.spent_j(now_s) + device.next_j - limits.joules_per_day
    if over_j <= 0:
        return None
    text = f"over budget: {device.spent_j(now_s):.3g} J spent, {device.next_j:.3g} J to come"
    return Rest(f"{text}, of {limits.joules_per_day:.3g} J a day", _free_s(device, over_j, now_s))


def _free_s(device: Device, over_j: float, now_s: float) -> float:
    """Return when enough of the day's joules will be more than a day ago."""
    for at_s, joules in device.spends:
        if at_s > now_s - DAY_S:
            over_j -= joules
            if over_j <= ROUNDING_J:
                return at_s + DAY_S
    return math.inf
