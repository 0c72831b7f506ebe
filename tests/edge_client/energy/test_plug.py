"""Smart plugs: their units, partial messages, resets, silence, and noise."""

from __future__ import annotations

import json

import pytest

from edge_client.energy.plug import MAX_AGE_S, Plug, figure
from protocol.transport import LoopbackHub

TASMOTA = {"Time": "2026-09-23T10:15:10", "ENERGY": {"Total": 12.34567, "Today": 0.06789, "Power": 5.91}}
SHELLY = {
    "id": 0,
    "apower": 5.9,
    "aenergy": {"total": 123.456, "by_minute": [98.1, 97.9, 98.3]},
    "temperature": {"tC": 31.2},
}


@pytest.mark.parametrize(
    ("kind", "message", "joules"),
    [
        ("tasmota", TASMOTA, 12.34567 * 3.6e6),
        ("tasmota", {"StatusSNS": TASMOTA}, 12.34567 * 3.6e6),
        ("tasmota", {"ENERGY": {"Total": [1.0, 0.5]}}, 5.4e6),
        ("tasmota", {"Time": "x", "DS18B20": {"Temperature": 20.1}}, None),
        ("shelly", SHELLY, 123.456 * 3600),
        ("shelly", {"id": 1, "src": "plug", "result": SHELLY}, 123.456 * 3600),
        ("shelly", {"method": "NotifyStatus", "params": {"ts": 1.5, "switch:0": SHELLY}}, 123.456 * 3600),
        ("shelly", {"method": "NotifyStatus", "params": {"ts": 1.5, "switch:0": {"apower": 5.9}}}, None),
        ("shelly1", 1000, 60_000.0),
    ],
)
def test_each_plugs_counter_in_joules(kind: str, message: object, joules: float | None) -> None:
    found = figure(kind, "t", json.dumps(message).encode(), "", "Wh")  # type: ignore[arg-type]
    assert found == (None if joules is None else pytest.approx(joules))


@pytest.mark.parametrize(
    ("payload", "field", "unit", "value"),
    [
        (b"5.91", "", "W", 5.91),
        (b'{"power": 5910}', "power", "mW", 5.91),
        (b'{"a": {"energy": 1.23}}', "a.energy", "kWh", 4.428e6),
        (b'{"a": 1}', "b", "W", None),
        (b"7", "", "J", 7.0),
    ],
)
def test_any_topic_of_the_users(payload: bytes, field: str, unit: str, value: float | None) -> None:
    found = figure("topic", "t", payload, field, unit)
    assert found == (None if value is None else pytest.approx(value))


class Bench:
    """A plug on a broker in memory, and a clock."""

    def __init__(self, kind: str = "tasmota", **more: str) -> None:
        self.now_s = 0.0
        hub = LoopbackHub()
        self.meter = hub.connect("meter")
        self.asked = hub.connect("spy")
        self.asked.subscribe("cmnd/#")
        self.plug = Plug(hub.connect("client"), kind, "plug-07", clock=lambda: self.now_s, **more)  # type: ignore[arg-type]

    def say(self, kilowatt_hours: object, topic: str = "tele/plug-07/SENSOR") -> None:
        self.meter.publish(topic, json.dumps({"ENERGY": {"Total": kilowatt_hours}}).encode())


def test_the_first_message_may_be_retained_and_old_so_counting_begins_with_the_second() -> None:
    bench = Bench()
    bench.say(1.0)
    with pytest.raises(ValueError, match="mqtt:tasmota:plug-07: nothing has come from it"):
        bench.plug.read()
    bench.say(2.0)
    assert bench.plug.read().value == 0.0
    bench.say(2.001)
    assert bench.plug.read().value == pytest.approx(3600.0)
    assert bench.plug.about.scope == "wall"


def test_the_plug_is_asked_every_ten_seconds() -> None:
    bench = Bench()
    for now_s in (0.0, 3.0, 10.0, 19.0):
        bench.now_s = now_s
        with pytest.raises(ValueError):
            bench.plug.read()
    packets = []
    while (packet := bench.asked.receive(0.0)) is not None:
        packets.append((packet.topic, packet.payload))
    assert packets == [("cmnd/plug-07/Status", b"8")] * 2


def test_a_counter_that_was_reset_is_a_gap() -> None:
    bench = Bench()
    for total in (1.0, 2.0, 2.5, 0.1, 0.2):
        bench.say(total)
    reading = bench.plug.read()
    assert (reading.value, reading.gaps) == (pytest.approx(0.6 * 3.6e6), 1)


@pytest.mark.parametrize(
    "noise", [b"", b"[", b"\xff", b"[1]", b'{"ENERGY": 3}', b'{"ENERGY": {"Total": "much"}}']
)
def test_noise_is_passed_over(noise: bytes) -> None:
    bench = Bench()
    for total in (1.0, 2.0):
        bench.say(total)
    bench.meter.publish("tele/plug-07/SENSOR", noise)
    bench.say(2.5)
    assert bench.plug.read().value == pytest.approx(1.8e6)


def test_a_plug_that_fell_silent_says_nothing_any_more() -> None:
    bench = Bench()
    for total in (1.0, 2.0):
        bench.say(total)
    bench.plug.read()
    bench.now_s = MAX_AGE_S + 1
    with pytest.raises(ValueError, match="nothing has come"):
        bench.plug.read()


def test_a_topic_in_watts_is_a_power_sensor() -> None:
    bench = Bench("topic", unit="W")
    for watts in (b"1.0", b"6.5"):
        bench.meter.publish("plug-07", watts)
    assert (bench.plug.about.quantity, bench.plug.read().value) == ("power", 6.5)
