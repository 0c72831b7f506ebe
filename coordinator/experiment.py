"""The experiment file: everything that decides a run's result, as TOML.

    artifact = "artifact"            # folder written by: sparsefleet export
    data = "data"                    # folder written by: sparsefleet data split (its test.npz)
    rounds = 10

    [method]
    name = "fedpai"
    density = 0.1                    # further keys are the method's settings

    [training]
    local_epochs = 1
    batch_size = 16
    learning_rate = 0.1

    [cohort]
    clients = 5                      # wait for so many before round 1

Paths are relative to the file. Where the broker is and who may connect does not change a result
and is given on the command line or in [broker].
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordinator.asynchronous import AsynchronousConfig
from coordinator.robust import AggregationConfig
from protocol.broker_url import is_loopback_host
from protocol.config import load
from protocol.errors import ConfigError
from protocol.messages import Name, Setting, Training
from protocol.method import Method
from protocol.methods import build
from protocol.values import SideFormat, ValueFormat


class CohortConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Who is asked and how long is waited."""

    clients: Annotated[int, msgspec.Meta(ge=1, le=100_000)]  # Joined clients needed before the first round.
    per_round: Annotated[int, msgspec.Meta(ge=0)] = 0  # Asked each round; 0 asks all.
    quorum: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0  # Share of the cohort that closes a round.
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0  # A round closes then in any case.
    join_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0  # For `clients` to have joined.
    # docs/energy_rounds.md. "energy" asks those that have spent the least; the limits are of each device.
    choose: Literal["random", "energy"] = "random"
    joules_per_day: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # 0: no limit.
    battery_floor_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    temperature_ceiling_c: Annotated[float, msgspec.Meta(ge=0, le=150)] = 0.0  # 0: no limit.
    rest_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0  # Of a device that is hot, slowed, or low.
    # Seconds of training that a round aims at: slower boards make fewer local steps. 0: all make all.
    train_target_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # And before that train fewer weights: at least this share of the method's density. 1: all train all.
    least_density_share: Annotated[float, msgspec.Meta(ge=0.125, le=1)] = 1.0
    profiles: list[str] = []  # Files of `sparsefleet energy profile --out`, until rounds tell.

    def check(self, method: Method, rule: str = "mean", is_asynchronous: bool = False) -> None:
        """Refuse settings that do nothing, or that the method or the aggregation cannot work with.

        Raises:
            ConfigError: with what to change.
        """
        limits = ("joules_per_day", "battery_floor_percent", "temperature_ceiling_c")
        idle = [name for name in limits if getattr(self, name)]
        if self.choose != "energy" and idle:
            raise ConfigError(f"cohort.{idle[0]} limits nothing unless cohort.choose = 'energy'")
        if self.profiles and self.choose != "energy" and not self.train_target_s:
            raise ConfigError("cohort.profiles serve cohort.choose = 'energy' and cohort.train_target_s only")
        if self.train_target_s and not method.unequal_steps:
            raise ConfigError(
                f"cohort.train_target_s gives clients unequal numbers of local steps, which method {method.name!r} "
                "(with these settings) cannot average: leave it out, or choose fedavg, fedopt, fedpai with shared "
                "masks, topk, sparsyfed or magnitude"
            )
        if self.least_density_share < 1 and not self.train_target_s:
            raise ConfigError("cohort.least_density_share does nothing without cohort.train_target_s")
        if self.least_density_share < 1 and not method.nests:
            raise ConfigError(
                f"cohort.least_density_share gives slow boards a part of the mask, which method {method.name!r} (with "
                "these settings) does not rank: leave it out, or choose fedpai or ssfl with shared masks"
            )
        if self.train_target_s and is_asynchronous:
            raise ConfigError(
                "cohort.train_target_s makes boards finish together, which asynchronous.buffer makes unnecessary: "
                "leave one of them out"
            )
        if self.train_target_s and rule != "mean":
            raise ConfigError(
                f"cohort.train_target_s weighs updates by their steps, aggregation.rule = {rule!r} weighs none: "
                "leave one of them out"
            )


class WireConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How bodies are coded."""

    upload_values: ValueFormat = "f32"
    download_values: ValueFormat = "f32"
    side_values: SideFormat = "f32"  # What is never pruned, both ways: biases, norms, statistics.


class BrokerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Where the broker is. Without a url one is started inside, on the loopback interface."""

    url: str = ""  # mqtt://host:port, or mqtts://host:port with TLS
    ca: str = ""  # For mqtts://; empty: our own authority, if there is one, or those that the system trusts.
    certificate: str = ""  # Of the coordinator, where the broker asks for one,
    key: str = ""  # and its private key.
    # Allow mqtt:// to another machine, and the embedded broker to do without TLS: the network itself is encrypted.
    plaintext: bool = False
    fleet: Name = "fleet"
    username: str = "coordinator"
    password: str = ""  # Better: environment variable SPARSEFLEET_PASSWORD.
    bind: str = "127.0.0.1"  # Of the embedded broker; any other address needs client_password, and has TLS.
    client_password: str = ""  # Of the user "device" at the embedded broker; empty makes one up.
    # Of the embedded broker. "auto": 8883 with TLS and 1883 without; 0 takes any free port.
    port: Literal["auto"] | Annotated[int, msgspec.Meta(ge=0, le=65535)] = "auto"

    @property
    def has_tls(self) -> bool:
        """Whether the embedded broker encrypts: beyond this machine, unless told otherwise."""
        return not is_loopback_host(self.bind) and not self.plaintext

    @property
    def listens_on(self) -> int:
        """The embedded broker's port."""
        if self.port == "auto":
            return 8883 if self.has_tls else 1883
        return self.port


class SecurityConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Who is let in (docs/security.md)."""

    # Devices that do not sign, or sign with a key that is not on the list. "auto": allowed where the broker is
    # on the loopback interface.
    unsigned: Literal["auto", "allow", "refuse"] = "auto"
    # Folder of the coordinator's key and its list of devices. Empty: environment variable SPARSEFLEET_HOME, or
    # ~/.config/sparsefleet; where unsigned devices are allowed and none was ever paired, the run's own folder.
    home: str = ""


class EvaluationConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Central evaluation."""

    every: Annotated[int, msgspec.Meta(ge=1)] = 1  # Rounds.
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1


class ScheduleConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How the learning rate falls from round to round."""

    # Reached after the last round, by the same factor each round; 0: it stays as it is.
    final_learning_rate: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0


class InitialConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Where the initial model comes from."""

    # "artifact": as exported. "seed": drawn from the run's seed on both sides, so that it does not travel.
    source: Literal["artifact", "seed"] = "artifact"
    # Of a drawn model: variance of the prunable weights, times their fan-in.
    gain: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0


class Experiment(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One run."""

    artifact: str
    data: str
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    method: dict[str, Setting]
    training: Training
    cohort: CohortConfig
    name: Name = "run"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    schedule: ScheduleConfig = msgspec.field(default_factory=ScheduleConfig)
    initial: InitialConfig = msgspec.field(default_factory=InitialConfig)
    aggregation: AggregationConfig = msgspec.field(default_factory=AggregationConfig)
    asynchronous: AsynchronousConfig = msgspec.field(default_factory=AsynchronousConfig)
    wire: WireConfig = msgspec.field(default_factory=WireConfig)
    broker: BrokerConfig = msgspec.field(default_factory=BrokerConfig)
    security: SecurityConfig = msgspec.field(default_factory=SecurityConfig)
    evaluation: EvaluationConfig = msgspec.field(default_factory=EvaluationConfig)

    def build_method(self) -> Method:
        """Return the method with its settings."""
        settings = dict(self.method)
        name = settings.pop("name", "")
        if not isinstance(name, str) or not name:
            raise ConfigError('the experiment has no method.name; for example: [method] name = "fedavg"')
        method = build(name, settings)
        method.check(self.training, self.wire.download_values)
        self.cohort.check(method, self.aggregation.rule, bool(self.asynchronous.buffer))
        if method.commits and self.aggregation.rule != "mean":
            raise ConfigError(
                f"method {name!r} keeps control variates that sum to zero only with aggregation.rule = 'mean'"
            )
        if self.asynchronous.buffer and not method.tolerates_staleness:
            raise ConfigError(
                f"method {name!r} with these settings needs all updates to start from one model: set "
                "asynchronous.buffer = 0"
            )
        return method

    def training_in(self, round_number: int) -> Training:
        """Return a round's local training: the rate of round t + 1 is lr_0 (lr_T / lr_0)^(t / T)."""
        first, final = self.training.learning_rate, self.schedule.final_learning_rate
        if final == 0.0:
            return self.training
        share = max(round_number - 1, 0) / self.rounds
        return msgspec.structs.replace(self.training, learning_rate=first * (final / first) ** share)


def read(path: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment; relative paths become relative to the file's folder.

    Raises:
        ConfigError: unreadable, an unknown key, a wrong value, an unknown method or setting.
    """
    experiment = load(path, Experiment, overrides)
    experiment.artifact = str((path.parent / experiment.artifact).resolve())
    experiment.data = str((path.parent / experiment.data).resolve())
    experiment.cohort.profiles = [str((path.parent / name).resolve()) for name in experiment.cohort.profiles]
    for name in ("ca", "certificate", "key"):
        given = getattr(experiment.broker, name)
        setattr(experiment.broker, name, str((path.parent / given).resolve()) if given else "")
    experiment.build_method()
    return experiment


def shown(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as plain values for the report, without the password."""
    plain: dict[str, Any] = msgspec.to_builtins(experiment)
    for key in ("password", "client_password"):
        plain["broker"].pop(key, None)
    return plain
