"""What a client's configuration says about measuring.

[meter]
idle_s = 10                      # how long the waiting board is measured when it joins; 0: never
monitor = "ina226@1-0040"        # which hwmon monitor, where there are several

[meter.i2c]                      # for energy = "i2c"
chip = "ina219"
shunt_mohm = 100

[meter.plug]                     # for energy = "plug"
kind = "tasmota"
topic = "plug-07"
url = "mqtt://laptop.local:1883"
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_client.energy.source import Scope

Positive = Annotated[float, msgspec.Meta(gt=0)]


class I2cSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A monitor on the I2C bus that no kernel driver reads."""

    chip: Literal["ina219", "ina226", "ina260"]
    bus: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    address: Annotated[int, msgspec.Meta(ge=0x40, le=0x4F)] = 0x40
    shunt_mohm: Positive = 100.0  # As it is printed: R100. An INA260 has its own.


class PlugSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A meter that publishes over MQTT (edge_client/energy/plug.py)."""

    kind: Literal["tasmota", "shelly", "shelly1", "topic"]
    topic: str
    url: str
    username: str = ""
    password: str = ""
    field: str = ""
    unit: Literal["W", "mW", "J", "mWh", "Wh", "kWh", "Wmin"] = "Wh"
    resolution_j: Positive = 36.0


class Calibration(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `sparsefleet energy calibrate` found: P = gain * P_source + offset_w."""

    source: str
    scope: Scope
    gain: Positive
    offset_w: float
    relative: Annotated[float, msgspec.Meta(gt=0, le=1)]  # k = 2


class MeterSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to measure."""

    idle_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0
    tau_s: Annotated[float, msgspec.Meta(ge=0, le=60)] | None = (
        None  # Of the sensor's low pass, by a step test.
    )
    monitor: str = ""
    keep_samples_mb: Annotated[int, msgspec.Meta(ge=0)] = (
        0  # All files, compressed, in the state folder; 0: none.
    )
    i2c: I2cSettings | None = None
    plug: PlugSettings | None = None
    calibration: Calibration | None = None
