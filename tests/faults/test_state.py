"""Fault rows 2, 8, 13, 21, 22 and 23: what stands on disks, and what comes late."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.report import EVENTS, read_csv
from edge_client.outbox import OUTBOX, Outbox
from edge_client.spool import Spool
from protocol import mqtt
from protocol.blobs import UPLOAD_CHUNK_BYTES, ref_of
from protocol.errors import DataError, TransportError
from protocol.messages import Update
from protocol.topics import BLOB_UP, Topics
from tests.conftest import FLEET, ROOT, USERS
from tests.edge_client.test_outbox import MEMORY, PARCEL
from tests.faults.peers import Fleet, by_rule, undisturbed
from tests.faults.record import full
from tests.faults.test_federations import begin, count, home, over_loopback, prepared, weights  # noqa: F401
from tests.faults.test_malformed import with_value
from tools.chaos.proxy import FaultProxy

# Row 2


class Chunks:
    """A connection of our own that counts the chunks that clients send."""

    def __init__(self, url: str) -> None:
        self.arrived: list[tuple[str, int]] = []
        self._transport = mqtt.connect(url, "counter", "coordinator", USERS["coordinator"], timeout_s=30)
        self._transport.subscribe(Topics(FLEET).of_all(BLOB_UP))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(TransportError):  # Closed.
            while True:
                packet = self._transport.receive(1.0)
                if packet is not None:
                    self.arrived.append((packet.topic, struct.unpack_from("<I", packet.payload)[0]))

    def close(self) -> None:
        self._transport.close()


@pytest.mark.slow
def test_an_upload_cut_by_kills_goes_on_where_it_was(fault, mosquitto, home, federate):  # noqa: F811
    row = fault(2)
    with FaultProxy("127.0.0.1", mosquitto.port) as proxy:
        one = prepared(federate(home, 1), mosquitto, rounds=1, proxy=proxy, deadline_s=300)
        text = one.experiment.read_text()
        one.experiment.write_text(text.replace('name = "fedpai"\ndensity = 0.2', 'name = "fedavg"'))
        chunks = Chunks(mosquitto.url)
        begin(one)
        proxy.set("rate", 3e6, "up")
        state = one.folder / "client-000"
        until_s = time.monotonic() + 60
        while not (state / OUTBOX).exists():
            assert time.monotonic() < until_s
            time.sleep(0.01)
        parcel = Outbox(state, Spool(state)).last()
        assert parcel is not None
        tenth = parcel.update.body.size // UPLOAD_CHUNK_BYTES // 10
        for part in range(1, 10, full(1, 4)):
            until_s = time.monotonic() + 60
            while len(set(chunks.arrived)) < part * tenth:
                assert time.monotonic() < until_s, f"{len(set(chunks.arrived))} chunks after {part} kills"
                time.sleep(0.005)
            one.kill(0)
            one.start_client(0, "--energy", "none")
            row.trials += 1
        row.is_partial = row.trials < 9
        proxy.set("rate", 0.0, "up")
        one.finish()
        chunks.close()
    assert len({topic for topic, _ in chunks.arrived}) == 1  # One body: it was not trained again.
    again = len(chunks.arrived) - len(set(chunks.arrived))
    assert again <= row.trials, f"{again} chunks came twice"
    row.lost, row.double = count(one)[1:]
    assert (row.lost, row.double) == (0, 0)
    assert weights(one) == over_loopback(one)


# Row 8


def test_late_updates_are_told_so_and_counted(fault, tmp_path):
    """By one to five rounds; the asynchronous half of the policy is in test_asynchronous_federation.py."""
    row = fault(8)
    expected = undisturbed(tmp_path / "whole", size=1000, rounds=7)
    with Fleet(tmp_path / "late", size=1000, rounds=7) as fleet:
        late, sent = fleet.peers[0], []
        rule = by_rule(0, 1000)

        def work(task):
            for age in range(1, 6):
                if task.round_number - age >= 1 and task.round_number == 6:
                    body = ref_of(bytes([age]) * 100)
                    facts = (
                        late.client_id,
                        1,
                        task.run,
                        task.round_number - age,
                        task.stage,
                        10,
                        body,
                        0.5,
                        1,
                    )
                    late.link.say(Update(*facts, [], 1))
                    sent.append(body.digest)
            return rule(task)

        late._work = work
        final = fleet.run()
        verdicts = [late.link._receipts[digest].verdict for digest in sent]
        row.lost, row.double = fleet.tally()[1:]
    np.testing.assert_array_equal(final.weights, expected)
    assert verdicts == ["late"] * 5
    rows = read_csv(tmp_path / "late" / "rounds.csv")
    assert [int(line["late"]) for line in rows] == [0, 0, 0, 0, 0, 5, 0]
    row.trials = 5
    assert (row.lost, row.double) == (0, 0)


# Row 13


@pytest.mark.slow
def test_values_that_are_no_numbers_or_too_large_count_for_nothing(fault, tmp_path):
    """One of ten clients; without it the same bits result, so that accuracy cannot drop."""
    row = fault(13)
    spoiled = [
        with_value(bits, section) for bits in (0x7FC00000, 0x7F800000, 0xFF800000) for section in (2, 3)
    ]
    huge = with_value(int(np.float32(1e30).view(np.uint32)), 2)
    size = 1008
    rounds = len(spoiled) + 1
    with Fleet(tmp_path / "without", size=size, rounds=rounds, peers=9) as fleet:
        expected = fleet.run().weights
    with Fleet(tmp_path / "with", size=size, rounds=rounds, peers=9, quarantine_after=100) as fleet:
        bodies = [*spoiled, huge]
        fleet.peers.append(fleet.peer("liar", lambda task: bodies[task.round_number - 1]))
        fleet.experiment.cohort.clients = 10
        final = fleet.run()
        row.lost, row.double = fleet.tally()[1:]
    assert np.isfinite(final.weights).all()
    np.testing.assert_array_equal(final.weights, expected)
    lines = [json.loads(line) for line in (tmp_path / "with" / EVENTS).read_text().splitlines()]
    rejected = [line for line in lines if line["event"] == "rejected"]
    assert [line["client"] for line in rejected] == ["liar"] * rounds
    row.trials = rounds
    assert (row.lost, row.double) == (0, 0)


def test_denormal_values_are_values(tmp_path, fault):
    row = fault(13)
    tiny = with_value(1, 2)
    with Fleet(tmp_path / "tiny", size=1008, rounds=1, peers=9) as fleet:
        fleet.peers.append(fleet.peer("tiny", lambda task: tiny))
        fleet.experiment.cohort.clients = 10
        final = fleet.run()
        assert "accepted" in [receipt.verdict for receipt in fleet.peers[-1].verdicts]
        row.lost, row.double = fleet.tally()[1:]
    assert np.isfinite(final.weights).all()
    row.trials = 1
    assert (row.lost, row.double) == (0, 0)


# Rows 21 and 22


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own size, which only root can make."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@contextlib.contextmanager
def full_disk(disk: Path) -> Iterator[None]:
    filler = fill(disk)
    yield
    filler.unlink()


@contextlib.contextmanager
def read_only_disk(disk: Path) -> Iterator[None]:
    """As the kernel makes a card that fails, with files open for writing or without."""
    mount = ["mount", "-o"]
    end_s = time.monotonic() + 20
    while subprocess.run([*mount, "remount,ro", str(disk)], capture_output=True, check=False).returncode:
        assert time.monotonic() < end_s, "the disk is always being written to"
    yield
    subprocess.run([*mount, "remount,rw", str(disk)], check=True)


def worked(one, client_id: str) -> list[int]:
    """The rounds whose update was accepted from a client."""
    rows = read_csv(one.out / "devices.csv")
    return [int(line["round_number"]) for line in rows if line["client_id"] == client_id]


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "words"), [(full_disk, "space"), (read_only_disk, "Read-only")])
def test_a_client_whose_disk_is_full_or_read_only_says_so_and_recovers(
    failing,
    words,
    fault,
    mosquitto,
    home,  # noqa: F811
    federate,
):
    row = fault(21)
    one = prepared(federate(home, 2), mosquitto, rounds=12, deadline_s=20, quorum=0.5)
    text = one.experiment.read_text().replace('name = "fedpai"\ndensity = 0.2', 'name = "proxskip"')
    one.experiment.write_text(text.replace("momentum = 0.9", "momentum = 0.0"))
    with small_disk(one.folder / "client-001", 64) as disk:
        begin(one)
        one.await_event(event="round-closed", round=2)
        with failing(disk):
            one.await_event(event="task-refused", client="client-001")
        freed_s = time.monotonic()
        refused = max(e["round"] for e in one.events() if e["event"] == "task-refused")
        while not any(number > refused for number in worked(one, "client-001")):
            assert time.monotonic() < freed_s + 60
            time.sleep(0.05)
        row.recovered(time.monotonic() - freed_s)
        one.finish()
    refusals = [event for event in one.events() if event["event"] == "task-refused"]
    assert any(words in event["reason"] for event in refusals)
    row.trials = 1
    row.lost, row.double = count(one)[1:]
    assert (row.lost, row.double) == (0, 0)


@pytest.mark.slow
def test_state_cut_short_at_any_byte_is_noticed(fault, tmp_path):
    row = fault(21)
    spool = Spool(tmp_path)
    Outbox(tmp_path, spool).keep(PARCEL, "run-1", MEMORY)
    for path in (tmp_path / OUTBOX, tmp_path / "memory-run-1.npz"):
        whole = path.read_bytes()
        for length in range(0, len(whole), 3):
            path.write_bytes(whole[:length])
            if path.name == OUTBOX:
                assert Outbox(tmp_path, spool).last() is None
            else:
                with pytest.raises(DataError, match="damaged"):
                    spool.memory("run-1")
            row.trials += 1
        path.write_bytes(whole)
    assert Outbox(tmp_path, spool).last() == PARCEL


@pytest.mark.slow
def test_a_coordinator_whose_disk_is_full_pauses_and_goes_on(fault, mosquitto, home, federate):  # noqa: F811
    row = fault(22)
    rng = random.Random(22)
    for _ in range(full(5, 2)):
        one = prepared(federate(home, 2), mosquitto, rounds=8)
        with small_disk(one.out, 40):
            begin(one)
            one.await_event(event="round-closed", round=rng.randint(0, 4))
            time.sleep(rng.uniform(0, 0.3))
            filler = fill(one.out)
            time.sleep(4)
            assert one.coordinator.poll() is None
            filler.unlink()
            freed_s, closed = time.monotonic(), len(closings(one))
            while len(closings(one)) == closed and time.monotonic() < freed_s + 30:
                time.sleep(0.05)
            row.recovered(time.monotonic() - freed_s)
            one.finish()
            assert len(read_csv(one.out / "rounds.csv")) == 9  # Scores come first.
            lost, double = count(one)[1:]
            assert (lost, double) == (0, 0)
            assert weights(one) == over_loopback(one)
        row.trials += 1
    row.lost, row.double = 0, 0


def closings(one) -> list[dict]:
    return [event for event in one.events() if event["event"] == "round-closed"]


# Row 23

WRITER = """
import sys
from pathlib import Path
from edge_client.outbox import Outbox
from edge_client.spool import Spool
from tests.edge_client.test_outbox import MEMORY, PARCEL
folder = Path(sys.argv[1])
print("ready", flush=True)
while True:
    Outbox(folder, Spool(folder)).keep(PARCEL, "run-1", MEMORY)
"""


@pytest.mark.slow
def test_state_is_readable_after_any_power_cut(fault, tmp_path):
    row = fault(23)
    rng = random.Random(23)
    for _ in range(full(200, 10)):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.05))
            writer.kill()
        with contextlib.suppress(OSError):  # Only root may; what was synced must be there without.
            Path("/proc/sys/vm/drop_caches").write_text("1")
        spool = Spool(tmp_path)
        kept = Outbox(tmp_path, spool).last()
        assert kept in (None, PARCEL)
        if kept is not None:
            np.testing.assert_equal(spool.memory("run-1"), MEMORY)
        row.trials += 1
    assert kept == PARCEL
