"""The messages, in the order in which they travel. Small ones: bodies travel as blobs.

    client                                        coordinator
      Join            (retained, will: Leave)  ->
                                               <-  Task        what to do, and which blobs it needs
      Want            chunks of those blobs    ->
                                               <-  chunks      (blobs.py)
      Update          what was done, its cost  ->
                                               <-  Want        chunks of the update's body
      chunks                                   ->
                                               <-  Receipt     accepted, late, duplicate, rejected
      Cost            what the upload cost     ->
      Refusal         instead of an update     ->
                                               <-  End         the run is over

What decides something travels inside a Signed envelope (signed.py). Who does not sign sends the
messages as they are, as version 0.1 did; whether that is read is the receiver's setting.

Encoded as msgpack maps with a "type" tag. Messages only grow, by fields with a default: an old
device must go on reading what a new coordinator sends. Decoding is typed and limited in size, so
that hostile bytes cost nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.errors import LimitExceeded, MalformedMessage
from protocol.values import SideFormat, ValueFormat

# The largest message is a Want for a large body: 4 bytes a chunk, at most a window of chunks.
MAX_MESSAGE_BYTES = 64 * 1024

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
PublicKey = Annotated[bytes, msgspec.Meta(max_length=32)]  # Ed25519, 32 bytes; empty: none.
Setting = str | int | float | bool


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=False, tag_field="type"):
    """Base of all messages."""


class BlobRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A body by content: SHA-256 of its bytes, how many there are, and how many travel at a time."""

    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=128 * 1024)] = 128 * 1024


class Join(Message, frozen=True, tag="join"):
    """A client is there. Retained, so that a coordinator that starts later sees it."""

    client_id: Name
    session: Count  # Counts the client's starts: a Leave of an older session is stale.
    num_examples: Count
    runtime: Text  # "onnxruntime 1.31.1", or "onnxruntime-training 1.19.2 Module".
    kernels: Text  # "avx2", "neon", ...
    profile: Text  # Name of the device profile.
    energy_source: Text
    versions: dict[Name, Text] = {}
    energy_scope: Text = ""
    idle_w: float | None = None  # Of the waiting device, measured when it joined.
    idle_uncertainty_w: Amount | None = None
    power_mode: Text = ""  # Of a Jetson.
    public_key: PublicKey = b""
    connection: Counter = 0  # Counts the session's connections: a will belongs to one of them.
    # How the waiting board is; announced every minute by boards that can tell, and when something slows them.
    temperature_c: float | None = None
    throttling: Text = ""
    battery_percent: Percent | None = None


class Leave(Message, frozen=True, tag="leave"):
    """The client is gone: its will, or its farewell."""

    client_id: Name
    session: Count
    connection: Counter = 0


class Training(msgspec.Struct, frozen=True):
    """How a client trains locally. One meaning for every method."""

    local_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)]
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Seeded(msgspec.Struct, frozen=True):
    """An initial model that each side draws itself (protocol/seeded.py)."""

    seed: Count
    gain: Amount
    digest: Digest  # SHA-256 of the little-endian float32 weights: both sides drew the same.


class Task(Message, frozen=True, tag="task"):
    """What a client of the cohort is asked to do in one round."""

    run: Name
    round_number: Count
    method: Name
    settings: dict[Name, Setting]
    stage: Name  # What this round is for in the method's words: "train", "score".
    training: Training
    seed: Count
    deadline_s: Amount
    artifact: BlobRef  # The manifest; it names the graphs by digest.
    blobs: dict[Name, BlobRef] = {}  # "weights", "mask", "initial": what the method's stage needs.
    values: ValueFormat = "f32"  # How the update's values are to be coded,
    side: SideFormat = "f32"  # and what is never pruned.
    # Of a body that also comes as its change, "<name>.change": digest of the mask that this needs.
    bases: dict[Name, Digest] = {}
    averaged: Count | None = None  # The last round whose mean has an update of this client.
    initial: Seeded | None = None
    seeded: list[Name] = []  # Bodies that are the initial model: drawn, not fetched.
    instance: Text = ""  # Tells runs of one name apart; what a client remembers of another does not count.
    local_steps: Count = 0  # Of local training, at most; 0: as many as its epochs have.
    stored: dict[
        Name, Count
    ] = {}  # Weights that each body stores: a device plans its memory before it fetches.


class Want(Message, frozen=True, tag="want"):
    """Please publish these chunks of a blob. The receiver asks, so it sets the pace."""

    digest: Digest
    chunks: Annotated[list[Count], msgspec.Meta(max_length=1024)]
    hears_repeats: bool = False  # Whether they may come on the client's own topic, too.


class Phase(msgspec.Struct, frozen=True):
    """What one phase of a round cost on the device."""

    phase: Name  # idle, receive, decode, prune, train, encode, upload
    duration_s: Amount
    cpu_s: Amount
    energy_j: Amount | None  # None: not measured and not modelled. Never zero for "unknown".
    uncertainty_j: Amount | None
    energy_source: Text  # What produced the figure, e.g. "rapl:package-0" or "model:cpu-time".
    received_bytes: Count = 0
    sent_bytes: Count = 0
    energy_scope: Text = ""  # What lies inside the figure: "module_input", "soc_package", "model", ...
    energy_raw_j: float | None = None  # As sampled, before the correction for the sensor's low pass.
    energy_net_j: float | None = None  # Beyond what the idle board would have taken; may be below zero.
    net_uncertainty_j: Amount | None = None
    power_peak_w: float | None = None  # Highest sample, not the highest power.
    coverage: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None  # Share of the time with samples.
    # "decode+encode": these phases were too short for the sensor and were measured as one.
    pooled: Text = ""
    temperature_c: float | None = None  # Highest.
    clock_mhz: Amount | None = None  # Mean over time and cores.
    throttling: Text = ""  # "under-voltage,throttled": what was seen during the phase.
    meter_cpu_s: Amount | None = None  # What measuring itself took, within cpu_s.
    num_steps: Count = 0  # Training steps within this phase,
    num_examples: Count = 0  # and examples in their batches, each as often as it was seen.
    battery_percent: Percent | None = None  # At its end.
    energy_warning: Text = ""  # "stuck: ...": the sensor spoke, and is not to be believed.
    disk_read_bytes: Count | None = None  # Of the client's process.
    disk_written_bytes: Count | None = None
    net_received_bytes: Count | None = None  # Of the whole machine, headers and other programs included.
    net_sent_bytes: Count | None = None


class Update(Message, frozen=True, tag="update"):
    """What a client returns: the body is a blob which the coordinator fetches."""

    client_id: Name
    session: Count
    run: Name
    round_number: Count
    stage: Name
    num_examples: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    body: BlobRef
    loss: float  # Mean training loss of the last local epoch; NaN where the stage has none.
    num_steps: Count
    phases: Annotated[list[Phase], msgspec.Meta(max_length=16)]
    peak_rss_bytes: Count
    committed: Count | None = None  # The last averaged round that the client's memory follows from.


class Refusal(Message, frozen=True, tag="refusal"):
    """The client cannot do the task, and why."""

    client_id: Name
    run: Name
    round_number: Count
    reason: Text


class Receipt(Message, frozen=True, tag="receipt"):
    """The coordinator's word on an update. Only this ends its delivery, never a broker's ack."""

    run: Name
    round_number: Count
    digest: Digest
    verdict: Literal["accepted", "late", "duplicate", "rejected", "unknown-mask"]
    reason: Text = ""
    mask_kept: bool = True  # Whether the next body may refer to this one's mask.


class Cost(Message, frozen=True, tag="cost"):
    """What came after the update was described: the cost of its upload."""

    client_id: Name
    run: Name
    round_number: Count
    phases: Annotated[list[Phase], msgspec.Meta(max_length=16)]


class End(Message, frozen=True, tag="end"):
    """The run is over; clients wait for the next."""

    run: Name


class Hello(Message, frozen=True, tag="hello"):
    """The coordinator is there (retained) or gone (its will)."""

    online: bool
    session: Count  # Counts the coordinator's starts: clients tell a new one that they are there.
    public_key: PublicKey = b""


class Signed(Message, frozen=True, tag="signed"):
    """A message and who says it: signed.py makes it and opens it."""

    session: Counter  # Of the sender.
    counter: Counter  # Never the same twice in a session.
    audience: Counter  # The receiver's session, as the sender knows it; what was for an earlier one is old.
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)]  # An encoded message.
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    boot: Annotated[bytes, msgspec.Meta(max_length=16)] = (
        b""  # Drawn at each start: tells copies of a card apart.
    )


class Pair(Message, frozen=True, tag="pair"):
    """A device that has a pairing code shows that it knows it (pairing.py); in an envelope signed by its key."""

    client_id: Name
    public_key: PublicKey
    coordinator_key: PublicKey  # As it heard it.
    nonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    proof: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Paired(Message, frozen=True, tag="paired"):
    """The coordinator knows the code, too, and has the device on its list."""

    nonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    proof: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Dismissal(Message, frozen=True, tag="dismissal"):
    """The coordinator does not let in the device that has just joined, and why."""

    reason: Text


AnyMessage = (
    Join
    | Leave
    | Task
    | Want
    | Update
    | Refusal
    | Receipt
    | Cost
    | End
    | Hello
    | Signed
    | Pair
    | Paired
    | Dismissal
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """Return the message as msgpack."""
    return _encoder.encode(message)


def decode(payload: bytes) -> AnyMessage:
    """Return the message in `payload`.

    Raises:
        LimitExceeded: more bytes than any message has; nothing was decoded.
        MalformedMessage: not msgpack, an unknown type, or a field outside its schema.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise LimitExceeded(f"a message of {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    try:
        message: AnyMessage = _decoder.decode(payload)
        return message
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(str(error)) from error
