"""A client that sends rubbish is rejected with the reason, and the round goes on without it."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from coordinator.experiment import CohortConfig, Experiment
from coordinator.report import RunFolder, read_csv
from coordinator.service import Coordinator
from protocol import artifact as artifacts
from protocol import codec
from protocol import header as header_of
from protocol.blob_store import BlobStore
from protocol.indices import encode_part
from protocol.layout import DENSE, PRUNABLE, Layout
from protocol.messages import End, Join, Receipt, Task, Training, Update, Want, decode, encode
from protocol.sparse import Mask, SparseVector
from protocol.topics import BLOB_UP, STATE, UPDATE, Topics
from protocol.transport import Loopback, LoopbackHub

LAYOUT = Layout.of([("weight", (40, 25), PRUNABLE), ("bias", (40,), DENSE)])
ONES = SparseVector(Mask.full(LAYOUT.size), np.ones(LAYOUT.size, np.float32))


def good() -> bytes:
    return codec.encode(ONES, LAYOUT.num_prunable, "f32")


def another_shape() -> bytes:
    return codec.encode(SparseVector(Mask.full(7), np.ones(7, np.float32)), 7, "f32")


def not_finite() -> bytes:
    """Encoding refuses NaN, so one is put where the raw values lie: in a body that zstd did not shrink."""
    rng = np.random.default_rng(0)
    vector = SparseVector(Mask.full(LAYOUT.size), rng.standard_normal(LAYOUT.size).astype(np.float32))
    body = bytearray(codec.encode(vector, LAYOUT.num_prunable, "f16"))
    # Tail of 40 float32 in byte planes: the two upper planes of the last value are 0x7f, 0xc0.
    body[-1], body[-41] = 0x7F, 0xC0
    return bytes(body)


def too_large() -> bytes:
    return codec.encode(SparseVector(ONES.mask, ONES.values * np.float32(1e30)), LAYOUT.num_prunable, "f32")


def beyond_the_end() -> bytes:
    """Gaps that lead past the last weight. Unsorted or repeated indices have no coding at all."""
    mask = Mask.of_model(np.array([3, 500]), LAYOUT)
    body = codec.encode(SparseVector(mask, np.ones(mask.nnz, np.float32)), LAYOUT.num_prunable, "f32")
    header, start = header_of.read(body)
    parts, indices, *rest = header.sections
    coding, parameter, raw = encode_part(np.array([3, 5000], np.int32), 10_000)
    row = struct.pack("<BBII", coding, parameter, 2, len(raw))
    assert parts == (len(row), len(row))
    header = msgspec.structs.replace(header, sections=(parts, (len(raw), len(raw)), *rest))
    return header_of.write(header) + row + raw + body[start + parts[1] + indices[1] :]


def bomb() -> bytes:
    """An honest header, and in place of the values a zstd frame of 2 kB that expands to 64 MiB."""
    body = good()
    header, start = header_of.read(body)
    parts, indices, values, side = header.sections
    frame = zstandard.ZstdCompressor(19, write_content_size=False).compress(bytes(64 << 20))
    header = msgspec.structs.replace(header, sections=(parts, indices, (values[0], len(frame)), side))
    begin = start + parts[1] + indices[1]
    return header_of.write(header) + body[start:begin] + frame + body[begin + values[1] :]


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "another shape": (another_shape, "another model"),
    "NaN": (not_finite, "finite"),
    "values beyond the exact sum": (too_large, "diverged"),
    "indices out of range": (beyond_the_end, "beyond"),
    "a decompression bomb": (bomb, "zstd"),
    "noise": (lambda: np.random.default_rng(1).bytes(5000), "begins with something else"),
    "nothing": (lambda: b"\0", "truncated"),
}


class FakeClient:
    """Speaks the protocol and uploads whatever it was given."""

    def __init__(self, hub: LoopbackHub, topics: Topics, client_id: str, body: bytes) -> None:
        self.client_id, self._topics, self._body = client_id, topics, body
        self._transport: Loopback = hub.connect(client_id)
        self.receipts: list[Receipt] = []
        for topic_filter in topics.client_filters(client_id):
            self._transport.subscribe(topic_filter)
        join = Join(client_id, 1, 10, "fake", "none", "fake", "none")
        self._transport.publish(topics.of(STATE, client_id), encode(join), retain=True)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        store = BlobStore(1 << 30)
        ref = store.put(self._body)
        while (packet := self._transport.receive(20)) is not None:
            message = decode(packet.payload)
            if isinstance(message, Task):
                update = Update(
                    self.client_id,
                    1,
                    message.run,
                    message.round_number,
                    message.stage,
                    10,
                    ref,
                    0.5,
                    1,
                    [],
                    1,
                )
                self._transport.publish(self._topics.of(UPDATE, self.client_id), encode(update))
            elif isinstance(message, Want):
                for index in message.chunks:
                    chunk = store.chunk(ref.digest, index)
                    assert chunk is not None
                    self._transport.publish(self._topics.of(BLOB_UP, self.client_id, ref.digest), chunk)
            elif isinstance(message, Receipt):
                self.receipts.append(message)
            elif isinstance(message, End):
                return

    def join(self) -> None:
        self._thread.join(20)


def manifest() -> artifacts.Manifest:
    fields = {"layout": LAYOUT.to_json(), "model": "m", "input_shape": [1], "num_classes": 2}
    rest = {"statistic_momentum": {}, "operators": [], "versions": {}, "files": {}}
    return artifacts.parse(artifacts.dump({**fields, **rest}))


@pytest.mark.parametrize("case", CASES)
def test_rubbish_is_rejected_with_its_reason_and_the_round_goes_on(case, tmp_path):
    hub, topics = LoopbackHub(), Topics("fleet")
    experiment = Experiment(
        artifact="",
        data="",
        rounds=1,
        method={"name": "fedavg"},
        training=Training(1, 1, 0.1),
        cohort=CohortConfig(clients=3, deadline_s=20, join_timeout_s=20),
    )
    coordinator = Coordinator(
        experiment,
        "run",
        manifest(),
        Path(),
        np.zeros(LAYOUT.size, np.float32),
        hub.connect("coordinator"),
        RunFolder(tmp_path, experiment),
        None,
    )
    honest = [FakeClient(hub, topics, f"honest-{n}", good()) for n in range(2)]
    hostile = FakeClient(hub, topics, "hostile", CASES[case][0]())
    result = coordinator.run()
    for client in [*honest, hostile]:
        client.join()
    assert [receipt.verdict for receipt in hostile.receipts] == ["rejected"]
    assert CASES[case][1] in hostile.receipts[0].reason
    assert all([receipt.verdict for receipt in client.receipts] == ["accepted"] for client in honest)
    # The mean of two deltas of one on a model of zeros.
    np.testing.assert_array_equal(result.weights, 1.0)
    (row,) = read_csv(tmp_path / "rounds.csv")
    assert (row["updates"], row["dropouts"], row["rejected"]) == ("2", "1", "1")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (event,) = [line for line in events if line["event"] == "rejected"]
    assert event["client"] == "hostile"
    assert event["reason"]
