"""The fault proxy between real clients and a real broker: each fault does what it says, and no more."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from protocol import mqtt, topics
from protocol.errors import ConfigError, TransportError
from protocol.topics import Topics
from protocol.transport import Packet, Will
from tests.conftest import ROOT
from tools.chaos import processes
from tools.chaos.faults import ALL, BOTH, Fault, parse
from tools.chaos.packets import Packet as Frame
from tools.chaos.proxy import FaultProxy
from tools.chaos.schedule import live_through, read_plan
from tools.cli import main

LAB = Topics("lab")
TASK, STATE = LAB.of(topics.TASK, "pi-1"), LAB.of(topics.STATE, "pi-1")
WAIT_S = 10.0


@pytest.fixture
def proxy(embedded_broker):
    with FaultProxy("127.0.0.1", embedded_broker.port) as made:
        yield made


@pytest.fixture
def coordinator(embedded_broker):
    connection = mqtt.connect(embedded_broker.url, "coord", "coordinator", "rotanidrooc")
    yield connection
    connection.close()


@pytest.fixture
def device(proxy):
    connection = mqtt.connect(proxy.url, "pi-1", "device", "ecived", Will(STATE, b"gone"))
    connection.subscribe(TASK)
    yield connection
    proxy.clear()
    connection.close()


def received(connection, quiet_s: float = 0.5) -> list[bytes]:
    """All payloads until nothing comes any more."""
    found = []
    while (packet := connection.receive(quiet_s)) is not None:
        found.append(packet.payload)
    return found


def send(connection, count: int, size: int = 50) -> list[bytes]:
    payloads = [f"{i:04}".encode() + bytes(size - 4) for i in range(count)]
    for payload in payloads:
        connection.publish(TASK, payload)
    return payloads


def until(condition) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


def test_without_faults_everything_passes_in_order_and_a_farewell_keeps_the_will_back(
    proxy, coordinator, device
):
    coordinator.subscribe(STATE)
    assert send(coordinator, 200) == received(device)
    large = bytes(range(256)) * 500
    device.publish(STATE, large)
    assert coordinator.receive(WAIT_S) == Packet(STATE, large)
    device.close()
    assert received(coordinator) == []
    until(lambda: proxy.num_open == 0)


def test_a_client_that_vanishes_leaves_its_will(proxy, coordinator, device):
    coordinator.subscribe(STATE)
    device.kill()
    assert coordinator.receive(WAIT_S) == Packet(STATE, b"gone")


@pytest.mark.parametrize("name", ["drop", "lose"])
def test_what_is_dropped_or_lost_does_not_arrive_and_the_rest_does(name, proxy, coordinator, device):
    proxy.set(name, 0.4, "down")
    sent, got = send(coordinator, 15), received(device)
    assert 0 < len(got) < len(sent)
    assert proxy.counts[name] == len(sent) - len(got)
    assert got == [payload for payload in sent if payload in set(got)]


def test_a_lost_packet_is_acknowledged_and_a_dropped_one_is_not(proxy, device):
    proxy.set("lose", 1.0, "up")
    device.publish(STATE, b"1")
    until(lambda: device._in_flight.num_packets == 0)
    proxy.set("lose", 0.0)
    proxy.set("drop", 1.0, "up")
    device.publish(STATE, b"2")
    time.sleep(0.5)
    assert device._in_flight.num_packets == 1


def test_duplicates_arrive_up_to_five_times(proxy, coordinator, device):
    proxy.set("duplicate", 1.0, "down")
    sent = send(coordinator, 20)
    assert received(device) == [payload for payload in sent for _ in range(5)]


def test_a_reordered_packet_is_overtaken_and_none_is_missing(proxy, coordinator, device):
    proxy.set("reorder", 0.3, "down")
    sent = send(coordinator, 50)
    got = received(device)
    assert got != sent
    assert sorted(got) == sent


def test_corruption_flips_one_bit_of_the_payload_only(proxy, coordinator, device):
    proxy.set("corrupt", 1.0, "down")
    for before, after in zip(send(coordinator, 20), received(device), strict=True):
        differences = int.from_bytes(before, "big") ^ int.from_bytes(after, "big")
        assert differences.bit_count() == 1


def test_truncation_leaves_whole_packets_with_less_in_them(proxy, coordinator, device):
    proxy.set("truncate", 1.0, "down")
    for before, after in zip(send(coordinator, 20), received(device), strict=True):
        assert before.startswith(after)
        assert len(after) < len(before)


@pytest.mark.slow
def test_delay_and_rate_take_their_time(proxy, coordinator, device):
    proxy.set("delay", 0.3, "down")
    begin_s = time.monotonic()
    send(coordinator, 5)
    assert device.receive(WAIT_S) is not None
    assert 0.3 <= time.monotonic() - begin_s < 2.0  # In parallel: five packets wait no longer than one.
    received(device)
    proxy.clear()
    proxy.set("rate", 400_000, "down")
    begin_s = time.monotonic()
    send(coordinator, 1, size=50_000)
    assert device.receive(WAIT_S) is not None
    assert time.monotonic() - begin_s >= 0.99


@pytest.mark.slow
def test_lost_segments_cost_time_and_nothing_else(proxy, coordinator, device):
    proxy.set("loss", 0.2, "down")
    begin_s = time.monotonic()
    (sent,) = send(coordinator, 1, size=60_000)
    packet = device.receive(WAIT_S * 2)
    assert packet is not None
    assert packet.payload == sent
    assert time.monotonic() - begin_s >= proxy.counts["loss"] * 0.2 > 0


@pytest.mark.slow
def test_a_stall_holds_everything_back_and_loses_nothing(proxy, coordinator, device):
    proxy.stall(1.0)
    begin_s = time.monotonic()
    sent = send(coordinator, 3)
    assert device.receive(WAIT_S).payload == sent[0]
    assert time.monotonic() - begin_s >= 0.9
    assert received(device) == sent[1:]
    assert device.connections == 1


@pytest.mark.slow
def test_a_cut_keeps_clients_out_for_its_length(proxy, coordinator, device):
    begin_s = time.monotonic()
    proxy.cut(2.5)
    until(lambda: device.connections == 2)
    assert time.monotonic() - begin_s >= 2.5
    assert proxy.counts["refused"] >= 1
    until(lambda: send(coordinator, 1) and device.receive(0.1))  # It has subscribed again.
    received(device)
    assert send(coordinator, 2) == received(device)


@pytest.mark.slow
def test_the_same_seed_harms_the_same_packets(embedded_broker, coordinator):
    arrived = []
    for _ in range(2):
        with FaultProxy("127.0.0.1", embedded_broker.port, seed=7) as proxy:
            device = mqtt.connect(proxy.url, "pi-1", "device", "ecived")
            device.subscribe(TASK)
            proxy.set("lose", 0.5, "down")
            send(coordinator, 30)
            arrived.append(received(device))
            device.close()
    assert arrived[0] == arrived[1]


def test_a_frame_beyond_the_limit_or_of_five_length_bytes_ends_the_connection(proxy):
    for rubbish in (b"\x10\xff\xff\xff\x7f", b"\x10\xff\xff\xff\xff\x01"):
        with socket.create_connection(("127.0.0.1", proxy.port), WAIT_S) as client:
            client.sendall(rubbish)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_a_packets_length_is_written_as_the_standard_says(size):
    encoded = Frame(3, 0, bytes(size)).encode()
    digits = 1 if size < 128 else 2 if size < 16_384 else 3 if size < 2_097_152 else 4
    assert len(encoded) == 1 + digits + size


def test_an_address_in_use_is_refused():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(TransportError, match="cannot listen"),
        FaultProxy("127.0.0.1", 1, port=other.getsockname()[1]),
    ):
        pass


# The words for faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop=0.05", Fault("drop", 0.05)),
        ("up:delay=0.3", Fault("delay", 0.3, direction="up")),
        ("cut=10@30/120", Fault("cut", 10, start_s=30, every_s=120)),
        ("rate=64000@5+10/30", Fault("rate", 64000, start_s=5, length_s=10, every_s=30)),
        ("stop=client-003@10+5", Fault("stop", 0, "client-003", BOTH, 10, 5)),
        ("kill=4711", Fault("kill", 0, "4711")),
    ],
)
def test_faults_are_read(text, fault):
    assert parse(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("drop", "write"),
        ("flood=1", "there is no 'flood'"),
        ("drop=1.5", "at most 1"),
        ("drop=x", "no number"),
        ("up:cut=1", "no direction"),
        ("cut=1+5", "its length already"),
        ("delay=1@0/10", "must end"),
        ("delay=nan", "between"),
        ("kill=1@0/0", "must end"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_reason(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse(text)


# Processes


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "sleeper-4711"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_found_by_id_and_by_a_whole_argument_and_killed(sleeper):
    assert processes.find(str(sleeper.pid)).pid == processes.find("sleeper-4711").pid == sleeper.pid
    assert processes.signal("sleeper-4711", "kill") == sleeper.pid
    assert sleeper.wait(WAIT_S) == -signal.SIGKILL


def test_a_name_that_fits_none_or_several_is_refused(sleeper):
    with pytest.raises(ConfigError, match="0 processes"):
        processes.find("sleeper")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "sleeper-4711"])
    try:
        with pytest.raises(ConfigError, match=f"2 processes.*{other.pid}"):
            processes.find("sleeper-4711")
    finally:
        other.kill()
        other.wait()


def test_a_stopped_process_is_continued_even_when_the_chaos_ends_first(sleeper):
    seen = []

    def tell(at_s, text):
        until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED)
        seen.append(text)

    assert live_through([parse(f"stop={sleeper.pid}+60")], None, 0.2, tell) == 0
    assert seen == [f"stop={sleeper.pid}"]
    until(lambda: psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED)


# The command


def test_help_names_every_fault(capsys):
    with pytest.raises(SystemExit):
        main(["chaos", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {name}=" in text for name in ALL)


@pytest.mark.slow
def test_the_command_follows_its_plan(tmp_path, embedded_broker, coordinator):
    plan = tmp_path / "plan.toml"
    plan.write_text('faults = ["down:lose=1@0+1", "cut=0@2.5", "cut=0@100"]\nduration_s = 3\nseed = 3\n')
    assert read_plan(plan).seed == 3
    command = [sys.executable, "-m", "tools.cli", "chaos", "--listen", "127.0.0.1:0", "--json"]
    command += ["--broker", f"127.0.0.1:{embedded_broker.port}", "--plan", str(plan)]
    chaos = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = chaos.stderr.readline().split()[-1]
    device = mqtt.connect(url, "pi-1", "device", "ecived")
    device.subscribe(TASK)
    until(lambda: "lose" in chaos.stderr.readline())
    send(coordinator, 3)
    time.sleep(1.2)
    assert send(coordinator, 2) == received(device)
    out, _ = chaos.communicate(timeout=WAIT_S)
    device.kill()
    said = json.loads(out)
    assert [text.split()[1] for text in said["done"]] == ["lose=1", "cut=0"]
    assert said["failures"] == 0
    assert said["counts"]["lose"] == 3
    assert chaos.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to do"),
        (["--listen", "127.0.0.1:0"], "belong together"),
        (["--listen", "here", "--broker", "127.0.0.1:1"], "HOST:PORT"),
        (["--fault", "drop=0.1"], "needs --listen"),
        (["--plan", "/nowhere.toml"], "nowhere"),
    ],
)
def test_the_command_says_what_is_missing(arguments, reason, capsys):
    assert main(["chaos", *arguments]) == 2
    assert reason in capsys.readouterr().err
