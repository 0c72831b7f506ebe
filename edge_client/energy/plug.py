"""Smart plugs and other meters that publish over MQTT.

    tasmota   tele/TOPIC/SENSOR, stat/TOPIC/STATUS8   {"ENERGY": {"Total": kWh}}; asked: cmnd/TOPIC/Status 8
    shelly    TOPIC/status/switch:0, TOPIC/events/rpc {"aenergy": {"total": Wh}}; asked: TOPIC/rpc (Gen2 and later)
    shelly1   shellies/TOPIC/relay/0/energy           watt-minutes (Gen1)
    topic     any topic: a number, or JSON with `field` ("a.b.c"), in `unit`

The plug's counter is used, not its watts: a counter misses nothing between two messages. Cheap
meters count a pulse about every ten seconds at 1 W, so figures below five minutes mean nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Literal

from edge_client.energy.source import About, Accuracy, Quantity, Reading
from protocol.errors import TransportError
from protocol.transport import Transport

Kind = Literal["tasmota", "shelly", "shelly1", "topic"]
JOULES = {"J": 1.0, "mWh": 3.6, "Wh": 3600.0, "kWh": 3.6e6, "Wmin": 60.0}
WATTS = {"W": 1.0, "mW": 1e-3}
CLIENT = "sparsefleet-meter"
ASK_S = 10.0
# Without a message for so long, the last one no longer says anything: three of Tasmota's usual periods.
MAX_AGE_S = 900.0


def figure(kind: Kind, topic: str, payload: bytes, field: str, unit: str) -> float | None:
    """Return the joules (or watts, by `unit`) in a message; None if it is about something else.

    Raises:
        ValueError: neither a number nor JSON, or the field holds no number.
    """
    if kind in ("topic", "shelly1"):
        value = json.loads(payload)
        for key in field.split(".") if field else ():
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return _number(value) * {**JOULES, **WATTS}["Wmin" if kind == "shelly1" else unit]
    message = json.loads(payload)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    if kind == "tasmota":
        energy = message.get("StatusSNS", message).get("ENERGY", {})
        # Several phases or channels come as an array; their sum is the plug's.
        return None if "Total" not in energy else _sum(energy["Total"]) * JOULES["kWh"]
    parts: Any = message.get("params", message.get("result", message))
    part: Any = next((parts[key] for key in ("switch:0", "pm1:0") if key in parts), parts)
    # Only what has changed is published: a message without the counter is no error.
    return None if "aenergy" not in part else _number(part["aenergy"]["total"]) * JOULES["Wh"]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise ValueError(f"{value!r} is no figure")
    return float(value)


def _sum(value: Any) -> float:
    return sum(_number(one) for one in value) if isinstance(value, list) else _number(value)


class Plug:
    """One meter's messages, as a sensor."""

    def __init__(
        self,
        transport: Transport,
        kind: Kind,
        topic: str,
        field: str = "",
        unit: str = "Wh",
        resolution_j: float = 36.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Subscribe. `resolution_j` is the counter's step: 36 J are 0.00001 kWh, Tasmota's finest."""
        self._transport, self._kind, self._topic = transport, kind, topic
        self._field, self._unit, self._clock = field, unit, clock
        self._latest: tuple[float, float] | None = None  # When it came, and what it said.
        self._energy_j, self._gaps, self._asked_s = 0.0, 0, -ASK_S
        self._heard: set[str] = set()
        quantity: Quantity = "power" if kind == "topic" and unit in WATTS else "energy"
        self.about = About(
            name=f"mqtt:{kind}:{topic}",
            quantity=quantity,
            scope="wall",
            covers="all that is plugged in, power supply included",
            leaves_out="nothing of it; which devices those are is the user's knowledge",
            accuracy=Accuracy(
                0.03, resolution_j if quantity == "energy" else 0.1, latency_s=2 * ASK_S, min_window_s=300.0
            ),
            period_s=ASK_S,
            sample_s=ASK_S,
        )
        for one in self._topics():
            transport.subscribe(one)

    def _topics(self) -> tuple[str, ...]:
        return {
            "tasmota": (f"tele/{self._topic}/SENSOR", f"stat/{self._topic}/STATUS8"),
            "shelly": (f"{self._topic}/status/switch:0", f"{self._topic}/events/rpc", f"{CLIENT}/rpc"),
            "shelly1": (f"shellies/{self._topic}/relay/0/energy",),
            "topic": (self._topic,),
        }[self._kind]

    def _ask(self) -> None:
        """Have the meter publish now, where it can be asked."""
        try:
            if self._kind == "tasmota":
                self._transport.publish(f"cmnd/{self._topic}/Status", b"8")
            elif self._kind == "shelly":
                call = {"id": 1, "src": CLIENT, "method": "Switch.GetStatus", "params": {"id": 0}}
                self._transport.publish(f"{self._topic}/rpc", json.dumps(call).encode())
        except TransportError as error:
            raise OSError(f"the meter's broker is away ({error})") from error

    def read(self) -> Reading:
        """See Sensor. A counter that fell was reset: a gap."""
        now_s = self._clock()
        if now_s - self._asked_s >= ASK_S:
            self._asked_s = now_s
            self._ask()
        problem = "nothing has come from it"
        while (packet := self._transport.receive(0.0)) is not None:
            if packet.topic not in self._heard:  # The first may have been retained, so of any age.
                self._heard.add(packet.topic)
                continue
            try:
                value = figure(self._kind, packet.topic, packet.payload, self._field, self._unit)
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                problem = f"a message on {packet.topic} cannot be read ({error})"
                continue
            if value is not None:
                self._take(now_s, value)
        if self._latest is None or now_s - self._latest[0] > MAX_AGE_S:
            raise ValueError(f"{self.about.name}: {problem}")
        return Reading(self._latest[1] if self.about.quantity == "power" else self._energy_j, self._gaps)

    def _take(self, now_s: float, value: float) -> None:
        change_j = value - self._latest[1] if self._latest is not None else 0.0
        self._latest = now_s, value
        if change_j < 0:
            self._gaps += 1
        else:
            self._energy_j += change_j
