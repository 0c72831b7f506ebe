"""Pairing over a wire: a person brings one code from the coordinator to the device."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from coordinator import enrolment, service
from coordinator.admission import Admission
from coordinator.registry import Device, Registry
from coordinator.report import read_csv
from edge_client import pairing
from edge_client.trust import Trust
from protocol.errors import ConfigError, NotAdmitted
from protocol.identity import Key
from protocol.messages import Hello, Pair, encode
from protocol.pairing import Exchange, new_code, read_code
from protocol.topics import HELLO, TASK, UPDATE, Topics
from protocol.transport import LoopbackHub
from tests.test_replay import CLIENTS, TOPICS, Client, Wire, nothing
from tools.cli import main

CODE = "7K3M-0XQZ-94TB-HW2V"


@pytest.fixture(autouse=True)
def without_farewell(monkeypatch):
    monkeypatch.setattr(service, "FAREWELL_S", 0.0)


def test_codes_are_read_as_people_type_them():
    assert read_code(" 7k3m0xqz94tbhw2v\n") == read_code("7K3M-OXQZ-94TB-HW2V") == CODE
    assert read_code(new_code()) != read_code(new_code())
    for bad in ("", "9Z9Z", CODE + "0", CODE.replace("Q", "U")):
        with pytest.raises(ConfigError, match="sparsefleet fleet code") as info:
            read_code(bad)
        assert not bad or bad not in str(info.value)


def test_a_proof_covers_everything_and_differs_by_side():
    base = ("lab", "pi-1", b"d" * 32, b"c" * 32, b"n" * 16)
    variants = [Exchange(*base)]
    for i, changed in enumerate(("la", "pi-2", b"e" * 32, b"f" * 32, b"m" * 16)):
        variants.append(Exchange(*(changed if i == k else one for k, one in enumerate(base))))  # type: ignore[arg-type]
    variants.append(Exchange("labp", "i-1", *base[2:]))  # The same letters, elsewhere.
    proofs = [one.device_proof(CODE) for one in variants]
    proofs += [variants[0].coordinator_proof(CODE), variants[0].device_proof(CODE.replace("7", "8"))]
    assert len(set(proofs)) == len(proofs)


class Side:
    """A coordinator that only answers to pairings, as `Reception` does."""

    def __init__(self, hub: LoopbackHub, registry: Registry, key: Key) -> None:
        self.admission = Admission(key, 1, registry)
        self.refused: list[str] = []
        self._transport = hub.connect("coordinator")
        self._transport.subscribe(TOPICS.of_all(UPDATE))
        self._transport.publish(TOPICS.of(HELLO), self.admission.hello(True), retain=True)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (packet := self._transport.receive(20)) is not None:
            address = TOPICS.parse(packet.topic)
            assert address is not None
            try:
                message = self.admission.open(address, packet)
                assert isinstance(message, Pair)
                topic = TOPICS.of(TASK, message.client_id)
                answer = self.admission.answer(message)
                self._transport.publish(topic, self.admission.seal(message.client_id, topic, answer))
            except NotAdmitted as error:
                self.refused.append(str(error))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(pairing, "REPEAT_S", 0.05)
    monkeypatch.setattr(pairing, "PATIENCE_S", 0.5)
    monkeypatch.setattr(pairing, "TICK_S", 0.02)
    return LoopbackHub()


def pair(hub: LoopbackHub, trust: Trust, client_id="pi-1", code=CODE, fleet="fleet") -> None:
    with_name = hub.connect(client_id)
    try:
        pairing.pair(with_name, Topics(fleet), client_id, trust, code)
    finally:
        with_name.close()


def test_both_sides_know_each_other_afterwards_also_after_a_restart(hub, tmp_path):
    registry, key = Registry(), Key.generate()
    registry.add_code(CODE, 1, "accepted")
    Side(hub, registry, key)
    trust = Trust.at(tmp_path, 1)
    assert not trust.is_paired
    pair(hub, trust, code=CODE.lower())
    assert registry.devices() == [Device("pi-1", trust.public, code=CODE)]
    again = Trust.at(tmp_path, 2)
    assert again.is_paired
    assert again._coordinator == key.public
    # A damaged pin is no missing pin: the device would obey anybody.
    (tmp_path / "identity" / "coordinator.pub").write_text("zz")
    with pytest.raises(ConfigError.__bases__[0], match="damaged"):
        Trust.at(tmp_path, 3)


def test_a_code_lets_in_so_many_devices_and_no_more(hub):
    registry = Registry()
    registry.add_code(CODE, 2, "accepted")
    side = Side(hub, registry, Key.generate())
    for name in ("a", "b"):
        pair(hub, Trust(Key.generate(), 1), name)
    with pytest.raises(ConfigError, match="used up"):
        pair(hub, Trust(Key.generate(), 1), "c")
    assert [one.client_id for one in registry.devices()] == ["a", "b"]
    assert "no pairing code that can still be used" in side.refused[0]
    assert registry.codes() == {}


def test_a_device_that_waits_for_a_coordinator_is_alive(hub, monkeypatch):
    """Systemd would kill it otherwise."""
    beats: list[None] = []
    monkeypatch.setattr(pairing.notify, "beat", lambda: beats.append(None))
    registry, key = Registry(), Key.generate()
    registry.add_code(CODE, 1, "accepted")
    timer = threading.Timer(0.5, lambda: Side(hub, registry, key))
    timer.start()
    pair(hub, Trust(Key.generate(), 1))
    assert len(beats) > 10


def test_a_lost_answer_is_given_again(hub):
    registry, trust = Registry(), Trust(Key.generate(), 1)
    registry.add_code(CODE, 1, "accepted")
    Side(hub, registry, Key.generate())
    for _ in range(2):  # As if it had been switched off before it could write down the first.
        pair(hub, trust)
    assert len(registry.devices()) == 1


@pytest.mark.parametrize("wrong", ["code", "fleet", "withdrawn"])
def test_without_a_code_nobody_is_let_in(wrong, hub):
    registry = Registry()
    registry.add_code(CODE, 1, "accepted")
    if wrong == "withdrawn":
        registry.withdraw_codes()
    Side(hub, registry, Key.generate())
    trust = Trust(Key.generate(), 1)
    code = CODE.replace("7", "8") if wrong == "code" else CODE
    if wrong == "fleet":  # Proven for another fleet, and said to this one.
        exchange = Exchange("other", "pi-1", trust.public, b"", b"n" * 16)
        say = hub.connect("pi-1")
        offer = Pair("pi-1", trust.public, b"", b"n" * 16, exchange.device_proof(code))
        say.publish(TOPICS.of(UPDATE, "pi-1"), trust.seal(TOPICS.of(UPDATE, "pi-1"), offer))
    else:
        with pytest.raises(ConfigError):
            pair(hub, trust, code=code)
    assert registry.devices() == []
    assert not trust.is_paired


def test_nobody_in_between_can_put_in_a_key_of_its_own(hub):
    """It relays everything, but says that the coordinator's key is its own."""
    registry, own = Registry(), Key.generate()
    registry.add_code(CODE, 1, "accepted")
    side = Side(hub, registry, Key.generate())
    between = hub.connect("between")
    between.publish(TOPICS.of(HELLO), encode(Hello(True, 9, own.public)), retain=True)
    trust = Trust(Key.generate(), 1)
    with pytest.raises(ConfigError, match="has not answered"):
        pair(hub, trust)
    assert registry.devices() == []
    assert not trust.is_paired
    assert "no pairing code" in side.refused[0]


def test_the_name_and_the_key_of_a_listed_device_are_taken(hub):
    registry, trust = Registry(), Trust(Key.generate(), 1)
    registry.add_code(CODE, 3, "accepted")
    side = Side(hub, registry, Key.generate())
    pair(hub, trust)
    with pytest.raises(ConfigError, match="called 'pi-1' already"):
        pair(hub, Trust(Key.generate(), 1))
    assert "sparsefleet fleet reject pi-1" in side.refused[-1]
    with pytest.raises(ConfigError):
        pair(hub, trust, "pi-2")
    assert "is its card a copy" in side.refused[-1]
    assert len(registry.devices()) == 1
    registry.forget("pi-1")
    pair(hub, Trust(Key.generate(), 2))
    assert registry.devices()[0].public_key != trust.public


def test_wrong_codes_are_looked_at_only_so_often():
    registry, now = Registry(), 100.0
    registry.add_code(CODE, 1, "accepted")
    tried = enrolment.Enrolment("fleet", b"c" * 32, registry, lambda: now)
    good = Exchange("fleet", "a", b"d" * 32, b"c" * 32, b"n" * 16).device_proof(CODE)
    right, wrong = (Pair("a", b"d" * 32, b"c" * 32, b"n" * 16, proof) for proof in (good, bytes(32)))
    for _ in range(enrolment.MAX_TRIES):
        with pytest.raises(NotAdmitted, match="no pairing code"):
            tried.let_in(wrong)
    with pytest.raises(NotAdmitted, match="too many"):
        tried.let_in(right)
    now += 1
    tried.let_in(right)
    assert registry.device("a") is not None


def test_what_is_said_in_pairing_does_not_tell_the_code(hub):
    registry = Registry()
    registry.add_code(CODE, 1, "accepted")
    Side(hub, registry, Key.generate())
    spy = hub.connect("spy")
    spy.subscribe("sf/#")
    pair(hub, Trust(Key.generate(), 1))
    heard = b"".join(packet.payload for packet in iter(lambda: spy.receive(0), None))
    assert len(heard) > 500
    for text in (CODE, CODE.replace("-", ""), CODE[:9]):
        assert text.encode() not in heard


# The command, on a coordinator that runs


def order(tmp_path, *arguments: str) -> int:
    return main(["fleet", "--home", str(tmp_path), *arguments])


def test_the_command_makes_codes_lists_accepts_revokes_and_rejects(hub, tmp_path, capsys):
    assert order(tmp_path, "code", "--confirm") == 0
    code = capsys.readouterr().out.splitlines()[0]
    key = Key.load_or_make(tmp_path)
    Side(hub, Registry(tmp_path / "fleet.db"), key)
    pair(hub, Trust(Key.generate(), 1), code=code)

    def listed() -> dict[str, object]:
        assert order(tmp_path, "list", "--json") == 0
        (device,) = json.loads(capsys.readouterr().out)["devices"]
        return {name: device[name] for name in ("client_id", "status", "reason")}

    assert listed() == {"client_id": "pi-1", "status": "pending", "reason": enrolment.WAITS}
    assert order(tmp_path, "accept", "pi-1") == 0
    capsys.readouterr()
    assert listed() == {"client_id": "pi-1", "status": "accepted", "reason": ""}
    assert order(tmp_path, "revoke", "pi-1", "--reason", "stolen") == 0
    capsys.readouterr()
    assert listed()["reason"] == "stolen"
    assert order(tmp_path, "list") == 0
    assert "revoked" in capsys.readouterr().out
    assert order(tmp_path, "reject", "pi-1") == 0
    assert order(tmp_path, "accept", "pi-1") == 2
    assert "not on the list of fleet 'fleet'; there is nobody" in capsys.readouterr().err
    assert order(tmp_path, "code", "--uses", "0") == 2


def test_a_device_that_waits_takes_part_as_soon_as_it_is_accepted(tmp_path):
    """It joined before; nobody has to tell it to join again."""
    wire = Wire(tmp_path)
    wire.registry.put(Device("b", wire.keys["b"].public, "pending"))
    coordinator, clients = wire.federation("run", 1, nothing)
    threading.Timer(0.3, lambda: order(tmp_path, "accept", "b")).start()
    coordinator.run()
    rows = read_csv(tmp_path / "run" / "rounds.csv")
    assert [row["updates"] for row in rows] == ["3", "3"]
    for client in clients:
        client.join()


def test_devices_pair_with_a_coordinator_that_runs(tmp_path, monkeypatch):
    """From the code to the final model, over one wire."""
    monkeypatch.setattr(pairing, "REPEAT_S", 0.05)
    wire = Wire(tmp_path)
    for name in CLIENTS:
        wire.registry.forget(name)
    code = new_code()
    wire.registry.add_code(code, 3, "accepted")
    coordinator, _ = wire.federation("run", 1, nothing, names=())
    clients = []

    def start(name: str) -> None:
        trust = Trust(Key.generate(), 1)
        pairing.pair(wire.hub.connect(name), TOPICS, name, trust, code)
        clients.append(Client(wire.hub.connect, name, trust, nothing))

    threads = [threading.Thread(target=start, args=(name,), daemon=True) for name in CLIENTS]
    for thread in threads:
        thread.start()
    np.testing.assert_array_equal(coordinator.run().weights, 2.0)
    for thread in threads:
        thread.join(10)
    assert len(clients) == 3
    assert sorted(event["client"] for event in wire.events("run") if event["event"] == "client-paired") == [
        *CLIENTS
    ]
