"""Which source measures here: what was asked for by name, or the first of the profile's that can be read.

"auto" goes through the profile's sources in its order and logs why one is passed over. What was asked
for by name and is not available is an error, never another source. "rapl" is the whole package with
every process on it, "rapl-process" this process's share: the right one where several clients run on
one machine; "auto-process" is "auto" among those that can tell processes apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from device_profiles import PowerSource, Profile
from edge_client.energy import battery, cpu_model, hwmon, ina3221, ina_i2c, load_model, pmic, rapl
from edge_client.energy.calibration import Calibrated
from edge_client.energy.plug import Plug
from edge_client.energy.settings import MeterSettings
from edge_client.energy.source import NoSource, Sensor, Unavailable
from protocol import mqtt
from protocol.errors import ConfigError, TransportError

# What a board may have, in the order in which it is looked at where the profile does not say.
SENSORS = ("ina3221", "pmic", "hwmon", "rapl", "battery", "load-model", "model")
PREFERENCES = ("auto", "auto-process", *SENSORS, "rapl-process", "i2c", "plug", "none")

_log = logging.getLogger(__name__)


def choose(
    preference: str, profile: Profile, root: Path = Path("/"), settings: MeterSettings | None = None
) -> Sensor:
    """Return the source for a preference, calibrated if the settings say so.

    Raises:
        ConfigError: no such preference, or the forced source is not available, or the calibration is of
            another one; with reason and cure.
    """
    settings = settings or MeterSettings()
    found = _chosen(preference, profile, root, settings)
    if settings.calibration is None or isinstance(found, NoSource):
        return found
    return Calibrated(found, settings.calibration)


def _chosen(preference: str, profile: Profile, root: Path, settings: MeterSettings) -> Sensor:
    if preference not in PREFERENCES:
        raise ConfigError(
            f"energy source {preference!r} is not known; choose one of {', '.join(PREFERENCES)}"
        )
    if preference == "none":
        return NoSource()
    if not preference.startswith("auto"):
        found = _open(preference, profile, root, settings)
        if isinstance(found, Unavailable):
            raise ConfigError(f"energy source {preference!r}: {found}")
        _log.info("energy source=%s scope=%s", found.about.name, found.about.scope)
        return found
    for _, found in _in_order(preference, profile, root, settings):
        if not isinstance(found, Unavailable):
            _log.info("energy source=%s scope=%s", found.about.name, found.about.scope)
            return found
        _log.info("an energy source is passed over reason=%s", found)
    _log.warning("energy stays unknown: no source of profile %s can be read", profile.name)
    return NoSource()


def _in_order(
    preference: str, profile: Profile, root: Path, settings: MeterSettings
) -> Iterator[tuple[str, Sensor | Unavailable]]:
    kinds = (
        ("rapl-process", "model") if preference == "auto-process" else tuple(s.sensor for s in profile.power)
    )
    for kind in kinds:
        yield kind, _open(kind, profile, root, settings)


def survey(
    profile: Profile, root: Path, settings: MeterSettings | None = None
) -> list[tuple[str, Sensor | Unavailable]]:
    """Return every kind of sensor that a board may have, the profile's first, with what it found."""
    preferred = [source.sensor for source in profile.power]
    kinds = [*preferred, *(kind for kind in SENSORS if kind not in preferred)]
    return [(kind, _open(kind, profile, root, settings or MeterSettings())) for kind in kinds]


def _open(kind: str, profile: Profile, root: Path, settings: MeterSettings) -> Sensor | Unavailable:
    spec = next((source for source in profile.power if source.sensor == kind), PowerSource(kind))
    if kind == "ina3221":
        return ina3221.find(root, spec, settings.tau_s)
    if kind == "pmic":
        return pmic.find(root)
    if kind == "hwmon":
        monitor = (settings.monitor,) if settings.monitor else spec.rails
        return hwmon.find(root, msgspec.structs.replace(spec, rails=monitor))
    if kind == "i2c":
        if settings.i2c is None:
            return Unavailable(
                "i2c", "nobody has said which chip", "give [meter.i2c] with chip and shunt_mohm"
            )
        i2c = settings.i2c
        return ina_i2c.find(i2c.chip, i2c.bus, i2c.address, i2c.shunt_mohm / 1e3)
    if kind in ("rapl", "rapl-process"):
        return rapl.find(root, "process" if kind == "rapl-process" else "package")
    if kind == "battery":
        return battery.find(root)
    if kind == "plug":
        return _plug(settings)
    if kind == "load-model":
        return load_model.find(root, profile)
    if kind == "model":
        return cpu_model.find(profile)
    raise ConfigError(
        f"device profile {profile.name} names a sensor {kind!r}; known are {', '.join(SENSORS)}"
    )


def _plug(settings: MeterSettings) -> Sensor | Unavailable:
    plug = settings.plug
    if plug is None:
        return Unavailable("plug", "nobody has said which one", "give [meter.plug] with kind, topic and url")
    try:
        transport = mqtt.connect(
            plug.url,
            f"sparsefleet-meter-{plug.topic[-20:]}",
            plug.username,
            plug.password,
            publish_timeout_s=1.0,
        )
    except TransportError as error:
        return Unavailable("plug", str(error), "check [meter.plug] url, username and password")
    return Plug(transport, plug.kind, plug.topic, plug.field, plug.unit, plug.resolution_j)
