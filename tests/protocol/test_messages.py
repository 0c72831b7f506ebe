from __future__ import annotations

from pathlib import Path

import msgpack
import msgspec
import pytest

from protocol.errors import LimitExceeded, MalformedMessage
from protocol.messages import (
    MAX_MESSAGE_BYTES,
    BlobRef,
    Cost,
    Dismissal,
    End,
    Hello,
    Join,
    Leave,
    Message,
    Pair,
    Paired,
    Phase,
    Receipt,
    Refusal,
    Seeded,
    Signed,
    Task,
    Training,
    Update,
    Want,
    decode,
    encode,
)

GOLDEN = Path(__file__).parent.parent / "golden"
REF = BlobRef("ab" * 32, 1000)
PHASE = Phase("train", 1.5, 1.25, 3.0, 0.5, "model:cpu-time(rpi5)", 10, 20)
MESSAGES: dict[str, Message] = {
    "join": Join("pi-1", 3, 100, "onnxruntime 1.31.1 portable", "neon", "rpi5", "none", {"numpy": "2.0"}),
    "leave": Leave("pi-1", 3),
    "task": Task(
        run="run-1",
        round_number=2,
        method="fedpai",
        settings={"density": 0.1, "masks": "shared", "examples_per_class": 10},
        stage="train",
        training=Training(1, 32, 0.05, 0.9, 1e-4),
        seed=7,
        deadline_s=60.0,
        artifact=REF,
        blobs={"weights": REF},
        values="f16",
    ),
    "task_seeded": Task(
        run="run-1",
        round_number=5,
        method="proxskip",
        settings={"density": 0.05, "variant": "ste"},
        stage="train",
        training=Training(1, 16, 0.05),
        seed=7,
        deadline_s=60.0,
        artifact=REF,
        blobs={"mean": REF},
        averaged=3,
        initial=Seeded(7, 2.0, "ef" * 32),
        seeded=["weights"],
    ),
    "task_steps": Task(
        run="run-1",
        round_number=2,
        method="fedavg",
        settings={},
        stage="train",
        training=Training(2, 32, 0.05, 0.9, 1e-4),
        seed=7,
        deadline_s=60.0,
        artifact=REF,
        blobs={"weights": REF},
        local_steps=12,
    ),
    "join_conditions": Join(
        "pi-1",
        3,
        100,
        "onnxruntime 1.31.1 portable",
        "neon",
        "rpi5",
        "pmic:calibrated",
        energy_scope="board_input",
        idle_w=2.75,
        idle_uncertainty_w=0.25,
        temperature_c=61.5,
        throttling="under-voltage",
        battery_percent=55.0,
    ),
    "cost_steps": Cost(
        "pi-1",
        "run-1",
        2,
        [
            Phase(
                "train",
                1.5,
                1.25,
                3.0,
                0.5,
                "pmic:calibrated",
                num_steps=12,
                num_examples=380,
                battery_percent=54.0,
            )
        ],
    ),
    "want": Want("cd" * 32, [0, 5, 6]),
    "update": Update("pi-1", 3, "run-1", 2, "train", 100, REF, 0.25, 12, [PHASE], 94_000_000),
    "update_committed": Update(
        "pi-1", 3, "run-1", 5, "train", 100, REF, 0.25, 12, [PHASE], 94_000_000, committed=3
    ),
    "refusal": Refusal("pi-1", "run-1", 2, "no data"),
    "receipt": Receipt("run-1", 2, "ab" * 32, "accepted"),
    "cost": Cost("pi-1", "run-1", 2, [PHASE]),
    "end": End("run-1"),
    "hello": Hello(True, 1),
    "join_keyed": Join("pi-1", 3, 100, "r", "k", "p", "e", public_key=bytes(range(32)), connection=2),
    "leave_connection": Leave("pi-1", 3, 2),
    "hello_keyed": Hello(True, 5, bytes(range(32))),
    "pair": Pair("pi-1", bytes(range(32)), bytes(range(1, 33)), bytes(range(16)), bytes(range(2, 34))),
    "paired": Paired(bytes(range(16)), bytes(range(2, 34))),
    "dismissal": Dismissal("revoked: stolen"),
    "signed": Signed(3, 9, 1, b"\x81\xa4type\xa3end", bytes(range(64))),
    "signed_boot": Signed(3, 9, 1, b"\x81\xa4type\xa3end", bytes(range(64)), bytes(range(8))),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_survives_the_wire(name):
    assert decode(encode(MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_of_version_1_still_decode(name):
    """Written once. A device in the field goes on sending these."""
    assert decode((GOLDEN / f"messages_v1_{name}.bin").read_bytes()) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_format_is_plain_msgpack(name):
    """Read by another library than the one that writes it."""
    assert msgpack.unpackb(encode(MESSAGES[name]))["type"] == name.partition("_")[0]


def test_what_a_newer_meter_says_survives_the_wire():
    measured = msgspec.structs.replace(
        PHASE, energy_net_j=-0.5, coverage=0.95, pooled="a+b", throttling="throttled"
    )
    message = msgspec.structs.replace(MESSAGES["update"], phases=[measured] * 6)
    assert decode(encode(message)) == message
    fields = msgpack.unpackb(encode(message))
    fields["phases"][0]["coverage"] = 1.5
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(fields))


def test_a_field_of_a_newer_peer_is_ignored():
    fields = msgpack.unpackb(encode(MESSAGES["leave"]))
    assert decode(msgpack.packb({**fields, "mood": "good"})) == MESSAGES["leave"]


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "a/b"},
        {"client_id": ""},
        {"client_id": "a\n"},
        {"client_id": "x" * 65},
        {"session": -1},
        {"session": "1"},
        {"type": "unheard-of"},
    ],
)
def test_a_field_outside_its_schema_is_refused(change):
    fields = msgpack.unpackb(encode(MESSAGES["leave"]))
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb({**fields, **change}))


def test_bad_digests_and_long_lists_are_refused():
    with pytest.raises(MalformedMessage):
        decode(encode(Want("zz" * 32, [])))
    with pytest.raises(MalformedMessage):
        decode(encode(Want("ab" * 32, list(range(2000)))))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\xdc\xff\xff", b"\x93\x01\x02", b"text"])
def test_noise_is_refused(payload):
    with pytest.raises(MalformedMessage):
        decode(payload)


def test_every_truncation_is_refused():
    whole = encode(MESSAGES["update"])
    for end in range(len(whole)):
        with pytest.raises(MalformedMessage):
            decode(whole[:end])


def test_a_message_beyond_the_limit_is_not_even_looked_at():
    with pytest.raises(LimitExceeded):
        decode(bytes(MAX_MESSAGE_BYTES + 1))
