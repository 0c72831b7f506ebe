"""sparsefleet client: the daemon of one device, from a file or flags."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import time
from pathlib import Path

import device_profiles
from edge_client import notify
from edge_client.config import CODE_VARIABLE, ClientConfig, read, with_secrets
from edge_client.daemon import Daemon
from edge_client.energy.choose import choose
from edge_client.energy.conditions import watch
from edge_client.energy.meter import Meter
from edge_client.energy.recording import Recording, room_in
from edge_client.energy.source import Sensor
from edge_client.energy.traffic import Traffic
from edge_client.kernels import library_path
from edge_client.link import Link
from edge_client.pairing import pair
from edge_client.spool import Spool
from edge_client.trust import Trust
from protocol import mqtt
from protocol.broker_url import is_loopback
from protocol.errors import ConfigError, RuntimeMissing, TransportError
from protocol.examples import count
from protocol.messages import Leave
from protocol.tls import Tls, demand
from protocol.topics import STATE, Topics
from protocol.transport import Transport, Will

log = logging.getLogger(__name__)

RETRY_S = 2.0

FLAGS = (
    "client_id",
    "data",
    "state",
    "runtime",
    "saved_activations",
    "threads",
    "spin",
    "memory_budget_mb",
    "energy",
    "exit_after_run",
)


def run_client(options: argparse.Namespace) -> int:
    """Serve until the run ends or the process is told to stop."""
    config = _config(options)
    profile = device_profiles.detect() if config.profile == "auto" else device_profiles.load(config.profile)
    try:
        library = library_path()
    except FileNotFoundError as error:
        raise RuntimeMissing(str(error)) from error
    num_examples = count(Path(config.data))
    topics = Topics(config.broker.fleet)
    spool = Spool(Path(config.state))
    source = choose(config.energy, profile, settings=config.meter)
    recording = _recording(config, source)
    meter = Meter(source, conditions=watch(), keeper=recording, traffic=Traffic())
    session = spool.next_session()
    trust = Trust.at(Path(config.state), session)
    state = topics.of(STATE, config.client_id)
    will = Will(state, lambda nth: trust.seal(state, Leave(config.client_id, session, nth)))
    notify.ready(f"{notify.CONNECTING} {config.broker.url}")
    transport = _connect(config, will)
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.closing(transport):
        if not trust.is_paired:
            _pair(config, transport, topics, trust)
        link = Link(transport, topics, config.client_id, trust)
        threads = config.threads or profile.threads
        budget_mb = config.memory_budget_mb or profile.budget_mb or 0
        daemon = Daemon(
            config, link, meter, spool, session, num_examples, library, threads, profile.name, budget_mb
        )
        try:
            daemon.run()
        finally:
            notify.stopping()
            if recording is not None:
                recording.close()
            link.leave()
    return 0


def _recording(config: ClientConfig, source: Sensor) -> Recording | None:
    """Return where samples are kept, if they are to be.

    Raises:
        ConfigError: the state folder cannot take a file.
    """
    if not config.meter.keep_samples_mb:
        return None
    path = Path(config.state) / f"samples-{time.time_ns() // 10**6}.csv.zst"
    try:
        return Recording(path, source.about, room_in(path.parent, config.meter.keep_samples_mb * 10**6))
    except OSError as error:
        raise ConfigError(f"samples cannot be kept ({error}); set [meter] keep_samples_mb = 0") from error


def _connect(config: ClientConfig, will: Will) -> Transport:
    """Connect, and keep trying for a while: a board may be up before the laptop with the broker is.

    Raises:
        TransportError: it did not work out in time; the last reason.
    """
    broker = config.broker
    demand(broker.url, broker.plaintext)
    tls = Tls(broker.ca, broker.certificate, broker.key)
    until_s = time.monotonic() + broker.connect_timeout_s
    while True:
        try:
            return mqtt.connect(broker.url, config.client_id, broker.username, broker.password, will, tls=tls)
        except TransportError as error:
            if time.monotonic() >= until_s:
                raise
            log.warning("no connection yet reason=%s", error)
            notify.beat()
            time.sleep(RETRY_S)


def _pair(config: ClientConfig, transport: Transport, topics: Topics, trust: Trust) -> None:
    """Come to know the coordinator, unless nobody but this machine can pose as one.

    Raises:
        ConfigError: there is no code, or it is not accepted.
    """
    identity = config.identity
    if identity.pairing_code:
        pair(transport, topics, config.client_id, trust, identity.pairing_code)
    elif identity.unsigned == "refuse" or (
        identity.unsigned == "auto" and not is_loopback(config.broker.url)
    ):
        raise ConfigError(
            f"this device is not paired with a coordinator, and {config.broker.url} is not on this machine: it would "
            "obey anybody. Make a code on the coordinator (sparsefleet fleet code) and set [identity] pairing_code, or "
            f"the environment variable {CODE_VARIABLE}"
        )


def _leave(*_: object) -> None:
    """Turn SIGTERM into the way out that says farewell."""
    raise KeyboardInterrupt


def _config(options: argparse.Namespace) -> ClientConfig:
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    if options.config is not None:
        config = read(options.config)
        for name, value in given.items():
            setattr(config, name, value)
    else:
        missing = [f"--{name.replace('_', '-')}" for name in ("client_id", "data") if name not in given]
        if missing:
            raise ConfigError(f"give --config FILE, or at least {' and '.join(missing)}")
        given.setdefault("state", str(Path("state") / given["client_id"]))
        config = with_secrets(ClientConfig(**given))
    if options.broker:
        config.broker.url = options.broker
    if options.ca:
        config.broker.ca = str(options.ca)
    if options.fleet:
        config.broker.fleet = options.fleet
    return config
