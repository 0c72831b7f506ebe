"""What clients send: each packet is checked, and becomes a step of the open round, or is dropped.

Update --announce--> fetch its body --complete--> fold it in --> Receipt
|                            |
late, duplicate          rubbish: rejected, the client is out of this round
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from coordinator.admission import Admission
from coordinator.aggregate import Accumulator
from coordinator.fleet import Fleet
from coordinator.report import RunFolder, device_rows
from coordinator.robust import Robust
from coordinator.round import Round, Standing
from coordinator.transfers import Downlink, Uplink
from protocol import codec
from protocol.errors import NotAdmitted, ProtocolError, Replayed, UnknownMask
from protocol.layout import Layout
from protocol.messages import (
    Cost,
    Join,
    Leave,
    Message,
    Phase,
    Receipt,
    Refusal,
    Task,
    Update,
    Want,
)
from protocol.sparse import Mask
from protocol.topics import BLOB_UP, STATE, TASK, UPDATE, WANT, Topics
from protocol.transport import Packet, Transport

log = logging.getLogger(__name__)


@dataclass
class OpenRound:
    """A round and what has been collected in it."""

    round: Round
    task: Callable[[str], Task]  # Client -> what it is asked to do.
    accumulator: Accumulator | Robust  # Of the uploaded vectors.
    upload_size: tuple[int, int]  # Length and prunable prefix of an uploaded vector.
    weigh: Callable[[int], int]  # Number of examples -> weight in the mean.
    announced: dict[str, Update] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)  # Client -> digest of the body that was folded in.
    losses: list[tuple[float, int]] = field(default_factory=list)  # Training loss and examples.
    phases: list[Phase] = field(default_factory=list)
    uploaded_bytes: int = 0
    uploaded_bound_bytes: float = 0.0  # What its positions and values need, and its side data as they are.
    rejected: int = 0


class Reception:
    """Routes packets. The loop in service.py owns it and tells it which round is open."""

    def __init__(
        self,
        run: str,
        transport: Transport,
        topics: Topics,
        down: Downlink,
        up: Uplink,
        folder: RunFolder,
        layout: Layout,
        quarantine_after: int,
        clock: Callable[[], float],
        show: Callable[[OpenRound], None],
        admission: Admission,
    ) -> None:
        """No round is open."""
        self._run, self._transport, self._topics = run, transport, topics
        self._down, self._up, self._folder, self._layout = down, up, folder, layout
        self._quarantine_after = quarantine_after
        self._clock, self._show, self.admission = clock, show, admission
        self._num_turned_away: Counter[tuple[str, str]] = Counter()
        self.fleet = Fleet()
        self.mask: Mask | None = None  # The global one, which bodies may refer to.
        self._client_masks: dict[str, Mask] = {}  # And each client's last own one.
        self.open: OpenRound | None = None

    def send(self, client_id: str, message: Message) -> None:
        """Say something to one client."""
        topic = self._topics.of(TASK, client_id)
        self._transport.publish(topic, self.admission.seal(client_id, topic, message))

    def handle(self, packet: Packet) -> None:
        """Route one packet. What violates the protocol is logged, counted and dropped."""
        address = self._topics.parse(packet.topic)
        if address is None or address.client_id is None:
            return
        client_id = address.client_id
        try:
            if address.kind == BLOB_UP:
                self._chunk(client_id, str(address.digest), packet.payload)
                return
            message = self.admission.open(address, packet)
            if address.kind == STATE:
                self._state(message)
            elif address.kind == WANT and isinstance(message, Want):
                self._down.want(message, self._clock())
            elif address.kind == UPDATE:
                self._from_client(message)
        except NotAdmitted as error:
            self._turn_away(client_id, error)
        except ProtocolError as error:
            self._drop(client_id, error)

    def review(self) -> None:
        """Send away who is no longer welcome: `sparsefleet fleet` may have been used meanwhile."""
        if not self.admission.was_edited():
            return
        for client_id in [one for one in self.fleet.present if not self.admission.is_welcome(one)]:
            del self.fleet.present[client_id]
            self._folder.event("client-sent-away", client=client_id)
            if self.open is not None:
                self.open.round.drop(client_id, "sent away")
                self._up.forget(client_id)

    def _turn_away(self, client_id: str, error: NotAdmitted) -> None:
        """Note what nobody is known to have said: the first time, and each time that there were ten times more."""
        reason = "said before" if isinstance(error, Replayed) else str(error)
        self._num_turned_away[client_id, reason] += 1
        number = self._num_turned_away[client_id, reason]
        if str(number).strip("0") == "1":
            log.warning("turned away client=%s times=%d reason=%s", client_id, number, error)
            self._folder.event("turned-away", client=client_id, times=number, reason=reason)

    def repeat_task(self) -> None:
        """Ask again whoever has not answered: after a reconnect the first asking may be lost."""
        if self.open is not None:
            for client_id in self.open.round.of(Standing.ASKED):
                self.send(client_id, self.open.task(client_id))

    def _state(self, message: Message) -> None:
        open_ = self.open
        if isinstance(message, Join):
            if self.fleet.join(message):
                facts = {"session": message.session, "runtime": message.runtime, "kernels": message.kernels}
                self._folder.event("client-joined", client=message.client_id, **facts)
                if open_ is not None and open_.round.rejoin(message.client_id, self._clock()):
                    self._up.forget(message.client_id)
                    open_.announced.pop(message.client_id, None)
            if open_ is not None and open_.round.standing.get(message.client_id) is Standing.ASKED:
                self.send(message.client_id, open_.task(message.client_id))
        elif isinstance(message, Leave) and self.fleet.leave(message):
            self._folder.event("client-lost", client=message.client_id, session=message.session)
            if open_ is not None:
                open_.round.drop(message.client_id, "lost")

    def _from_client(self, message: Message) -> None:
        open_ = self.open
        if isinstance(message, Update):
            self._announce(message)
        elif isinstance(message, Refusal):
            facts = {"client": message.client_id, "round": message.round_number, "reason": message.reason}
            self._folder.event("task-refused", **facts)
            log.warning("task refused client=%s reason=%s", message.client_id, message.reason)
            if open_ is not None and message.run == self._run and message.round_number == open_.round.number:
                open_.round.drop(message.client_id, message.reason)
        elif isinstance(message, Cost) and message.run == self._run:
            self._record(message.client_id, message.round_number, message.phases, None)

    def _announce(self, update: Update) -> None:
        """An update is ready: fetch its body, unless it is late or known."""
        open_ = self.open
        if open_ is None or update.run != self._run:
            return self._late(update)
        verdict = open_.round.announce(update.client_id, update.round_number, self._clock())
        if verdict == "accepted":
            open_.announced[update.client_id] = update
            limit = codec.max_body_bytes(open_.upload_size[0])
            self._up.begin(update.client_id, update.body, limit)
        elif open_.accepted.get(update.client_id) == update.body.digest:
            self._receipt(update, "duplicate")
        elif verdict == "late":
            self._late(update)

    def _chunk(self, client_id: str, digest: str, payload: bytes) -> None:
        """A chunk of an update's body; the last one completes the update."""
        open_ = self.open
        update = open_.announced.get(client_id) if open_ is not None else None
        if open_ is None or update is None:
            return
        body = self._up.chunk(client_id, digest, payload)
        if body is None:
            return
        try:
            size, num_prunable = open_.upload_size
            ends = self._layout.ends_of(num_prunable)
            vector = codec.decode(body, size, num_prunable, self._masks_for(client_id), ends=ends)
        except UnknownMask:
            open_.round.rejoin(client_id, self._clock())
            self._receipt(update, "unknown-mask")
            return
        if open_.round.is_closed(self._clock()):
            return self._late(update)
        # Folding may still refuse the values; only then is the client done.
        open_.accumulator.fold(vector, open_.weigh(update.num_examples))
        open_.round.complete(client_id, self._clock())
        self._client_masks[client_id] = vector.mask
        open_.accepted[client_id] = digest
        open_.losses.append((update.loss, update.num_examples))
        open_.uploaded_bytes += len(body)
        facts = codec.describe(body)
        open_.uploaded_bound_bytes += facts["bound_bytes"] + facts["tail_bytes"]
        open_.phases.extend(update.phases)
        self._record(client_id, open_.round.number, update.phases, update.peak_rss_bytes)
        self._receipt(update, "accepted")
        self._show(open_)

    def _masks_for(self, client_id: str) -> dict[str, Mask]:
        """What a body of this client may refer to; bounded, whatever masks it makes up."""
        masks = (self.mask, self._client_masks.get(client_id))
        return {mask.digest: mask for mask in masks if mask is not None}

    def _late(self, update: Update) -> None:
        self._folder.event("update-late", client=update.client_id, round=update.round_number)
        self._receipt(update, "late")

    def _record(
        self, client_id: str, round_number: int, phases: list[Phase], peak_rss_bytes: int | None
    ) -> None:
        join = self.fleet.present.get(client_id)
        runtime, kernels = (join.runtime, join.kernels) if join else ("", "")
        self._folder.devices(device_rows(round_number, client_id, phases, peak_rss_bytes, runtime, kernels))

    def _drop(self, client_id: str, error: ProtocolError) -> None:
        """Reject what a client sent. If it was its update, the client is out of this round."""
        open_ = self.open
        log.warning("rejected client=%s reason=%s", client_id, error)
        number = open_.round.number if open_ is not None else None
        self._folder.event("rejected", client=client_id, round=number, reason=str(error))
        if open_ is None:
            return
        open_.rejected += 1
        update = open_.announced.get(client_id)
        if update is not None and client_id not in open_.accepted:
            del open_.announced[client_id]
            open_.round.drop(client_id, str(error))
            self._up.forget(client_id)
            self._receipt(update, "rejected", str(error))
            if self.fleet.reject(client_id, self._quarantine_after):
                log.error("quarantined client=%s reason=%s", client_id, error)
                self._folder.event("quarantined", client=client_id, reason=str(error))

    def _receipt(
        self,
        update: Update,
        verdict: Literal["accepted", "late", "duplicate", "rejected", "unknown-mask"],
        reason: str = "",
    ) -> None:
        receipt = Receipt(update.run, update.round_number, update.body.digest, verdict, reason[:1000])
        self.send(update.client_id, receipt)
