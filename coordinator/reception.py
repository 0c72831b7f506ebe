"""What clients send: each packet is checked, and becomes a step of the open round, or is dropped.

Update --announce--> fetch its body --complete--> fold it in --settle--> Receipt
|                            |                            |
late, duplicate    rubbish: rejected, the client      first on disk, where there is a ledger
                   is out of this round
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from coordinator.admission import Admission
from coordinator.client_masks import ClientMasks
from coordinator.downlink import Downlink
from coordinator.fleet import Fleet
from coordinator.ledger import Ledger
from coordinator.open_round import OpenRound
from coordinator.report import RunFolder, device_rows
from coordinator.round import Standing
from coordinator.uplink import Uplink
from protocol import codec
from protocol.errors import Cloned, Dismissed, NotAdmitted, ProtocolError, Replayed, UnknownMask
from protocol.layout import Layout
from protocol.messages import (
    Cost,
    Join,
    Leave,
    Message,
    Pair,
    Phase,
    Receipt,
    Refusal,
    Update,
    Want,
)
from protocol.sparse import Mask, SparseVector
from protocol.topics import BLOB_UP, STATE, TASK, UPDATE, WANT, Topics
from protocol.transport import Packet, Transport

log = logging.getLogger(__name__)

MAX_REASONS = 1000

RETRY_S = 1.0  # After the disk was full.

JOIN_FACTS = (
    "session",
    "runtime",
    "kernels",
    "profile",
    "energy_source",
    "energy_scope",
    "idle_w",
    "idle_uncertainty_w",
    "power_mode",
)


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
        ledger: Ledger | None = None,
        heard: Callable[[Join], None] = lambda message: None,
        spent: Callable[[str, int, list[Phase]], float | None] = lambda client_id, round_number, phases: None,
    ) -> None:
        """No round is open. Without a ledger, what was accepted is lost with the process.

        `heard` and `spent` are told of each Join and of each report of phases; the latter knows its density.
        """
        self._heard, self._spent = heard, spent
        self._run, self._transport, self._topics = run, transport, topics
        self._down, self._up, self._folder, self._layout = down, up, folder, layout
        self._quarantine_after = quarantine_after
        self._clock, self._show, self.admission = clock, show, admission
        self._num_turned_away: Counter[tuple[str, str]] = Counter()
        self.fleet = Fleet()
        self.mask: Mask | None = None  # The global one, which bodies may refer to,
        self.parts: tuple[Mask, ...] = ()  # and those of its parts that boards train.
        self._client_masks = ClientMasks()
        self.open: OpenRound | None = None
        self._ledger = ledger
        self._unsettled: list[tuple[Update, bytes]] = []  # Folded in, and not yet receipted.
        self._retry_s: float | None = None  # When to try again after the disk was full.
        self._costs: dict[str, int] = {}  # Client -> the last round whose upload it has accounted for.
        if ledger is not None:
            self.fleet.distrust(ledger.quarantined())

    @property
    def is_settled(self) -> bool:
        """Whether everything that was folded in has its receipt."""
        return not self._unsettled

    def restore(self, updates: Iterable[tuple[Update, bytes]], recorded: set[str]) -> None:
        """Fold in what was accepted before a restart; of the clients in `recorded` the report has it already."""
        open_ = self.open
        assert open_ is not None
        for update, body in updates:
            client_id, now_s = update.client_id, self._clock()
            if update.round_number != open_.round.number:
                open_.round.since[client_id] = update.round_number
            open_.round.announce(client_id, update.round_number, now_s)
            open_.announced[client_id] = update
            vector = self._decoded(open_, client_id, body)
            open_.fold(update, vector, body)
            self._client_masks.keep(client_id, vector.mask, self.mask)
            open_.round.complete(client_id, now_s)
            if client_id not in recorded:
                self._record(client_id, open_.round.number, update.phases, update.peak_rss_bytes)

    def settle(self) -> None:
        """Make what was folded in durable, then say so to the clients. A full disk makes them wait."""
        open_, now_s = self.open, self._clock()
        if self.is_settled or open_ is None or (self._retry_s is not None and now_s < self._retry_s):
            return
        try:
            if self._ledger is not None:
                self._ledger.accept(open_.round.number, self._unsettled)
        except sqlite3.Error as error:
            if self._retry_s is None:
                log.error("paused reason=the run folder cannot be written: %s", error)
                self._folder.event("paused", reason=str(error))
            self._retry_s = now_s + RETRY_S
            return
        self._retry_s = None
        for update, _ in self._unsettled:
            self._record(update.client_id, open_.round.number, update.phases, update.peak_rss_bytes)
            self._receipt(update, "accepted")
        self._unsettled.clear()

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
                self._down.want(client_id, message, self._clock())
            elif address.kind == UPDATE:
                self._from_client(message)
        except NotAdmitted as error:
            self._turn_away(client_id, error)
            if isinstance(error, Dismissed) and address.kind == STATE:
                topic = self._topics.of(TASK, client_id)
                self._transport.publish(topic, self.admission.dismissal(topic, error))
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
        # Who was accepted just now has said that it is there before: the broker says it again.
        self._transport.subscribe(self._topics.of_all(STATE))

    def _turn_away(self, client_id: str, error: NotAdmitted) -> None:
        """Note what nobody is known to have said: the first time, and each time that there were ten times more."""
        reason = "said before" if isinstance(error, Replayed) else str(error)
        kind = client_id, reason
        if kind not in self._num_turned_away and len(self._num_turned_away) >= MAX_REASONS:
            kind = "", "of many kinds"  # Whoever makes up names and rubbish fills neither memory nor disk.
        self._num_turned_away[kind] += 1
        number = self._num_turned_away[kind]
        if isinstance(error, Cloned):
            log.error("quarantined client=%s reason=%s", client_id, error)
            self._folder.event("quarantined", client=client_id, reason=str(error))
        # What was said before comes again by itself, now and then: brokers deliver at least once.
        if str(number).strip("0") == "1" and not (number == 1 and isinstance(error, Replayed)):
            log.warning("turned away client=%s times=%d reason=%s", client_id, number, error)
            self._folder.event("turned-away", client=kind[0], times=number, reason=kind[1])

    def repeat_task(self) -> None:
        """Ask again whoever has not answered: after a reconnect the first asking may be lost."""
        if self.open is not None:
            for client_id in self.open.round.of(Standing.ASKED):
                self.send(client_id, self.open.task(client_id))

    def _state(self, message: Message) -> None:
        open_ = self.open
        if isinstance(message, Join):
            self._down.returned(message.client_id)
            if self.fleet.join(message):
                facts = {name: getattr(message, name) for name in JOIN_FACTS}
                self._folder.event("client-joined", client=message.client_id, **facts)
                if open_ is not None and open_.round.rejoin(message.client_id, self._clock()):
                    # What has come of its update stays: a restarted client offers the same one again.
                    open_.announced.pop(message.client_id, None)
            if message.client_id in self.fleet.present:
                self._heard(self.fleet.present[message.client_id])
            if open_ is not None and open_.round.standing.get(message.client_id) is Standing.ASKED:
                self.send(message.client_id, open_.task(message.client_id))
        elif isinstance(message, Leave) and self.fleet.leave(message):
            self._folder.event("client-lost", client=message.client_id, session=message.session)
            if open_ is not None:
                open_.round.drop(message.client_id, "lost", is_away=True)

    def _from_client(self, message: Message) -> None:
        open_ = self.open
        if isinstance(message, Update):
            self._announce(message)
        elif isinstance(message, Pair):
            self._folder.event("client-paired", client=message.client_id)
            self.send(message.client_id, self.admission.answer(message))
        elif isinstance(message, Refusal):
            facts = {"client": message.client_id, "round": message.round_number, "reason": message.reason}
            self._folder.event("task-refused", **facts)
            log.warning("task refused client=%s reason=%s", message.client_id, message.reason)
            if open_ is not None and message.run == self._run:
                standing, asked_in = (
                    open_.round.standing,
                    open_.round.since.get(message.client_id, open_.round.number),
                )
                if message.client_id in standing and message.round_number == asked_in:
                    open_.round.drop(message.client_id, message.reason)
        elif isinstance(message, Cost) and message.run == self._run:
            if self._costs.get(message.client_id, -1) >= message.round_number:
                return  # Delivered twice.
            self._costs[message.client_id] = message.round_number
            self._record(message.client_id, message.round_number, message.phases, None)

    def _announce(self, update: Update) -> None:
        """An update is ready: fetch its body, unless it is late or known."""
        open_ = self.open
        if open_ is None or update.run != self._run:
            return self._late(update)
        if self._retry_s is not None or any(update == waiting for waiting, _ in self._unsettled):
            return  # Its receipt follows, or it announces itself again.
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
            vector = open_.restate(update, self._decoded(open_, client_id, body))
        except UnknownMask:
            open_.round.rejoin(client_id, self._clock())
            self._receipt(update, "unknown-mask")
            return
        if open_.round.is_too_late(self._clock()):
            return self._late(update)
        # Folding may still refuse the values; only then is the client done.
        alone = self._alone(open_, update, vector, body)
        open_.fold(update, vector, body)
        self._client_masks.keep(client_id, vector.mask, self.mask)
        open_.round.complete(client_id, self._clock())
        self._unsettled.append((update, alone))
        self._show(open_)

    def _decoded(self, open_: OpenRound, client_id: str, body: bytes) -> SparseVector:
        size, num_prunable = open_.upload_size
        ends = self._layout.ends_of(num_prunable)
        return codec.decode(body, size, num_prunable, self._masks_for(client_id), ends=ends)

    def _alone(self, open_: OpenRound, update: Update, vector: SparseVector, body: bytes) -> bytes:
        """The body as the ledger keeps it: neither a client's own mask nor old models are known after a restart."""
        named = codec.describe(body)["mask"]
        is_known = named is None or (self.mask is not None and named == self.mask.digest)
        is_fresh = update.round_number == open_.round.number
        if self._ledger is None or (is_known and is_fresh):
            return body
        num_prunable = open_.upload_size[1]
        return codec.encode(vector, num_prunable, "f32", ends=self._layout.ends_of(num_prunable))

    def _masks_for(self, client_id: str) -> dict[str, Mask]:
        """What a body of this client may refer to; bounded, whatever masks it makes up."""
        masks = (self.mask, *self.parts, self._client_masks.get(client_id))
        return {mask.digest: mask for mask in masks if mask is not None}

    def _late(self, update: Update) -> None:
        if self._ledger is not None and update.run == self._run and self._ledger.knows(update):
            return self._receipt(update, "duplicate")
        if self.open is not None:
            self.open.late += 1
        self._folder.event("update-late", client=update.client_id, round=update.round_number)
        self._receipt(update, "late")

    def _record(
        self, client_id: str, round_number: int, phases: list[Phase], peak_rss_bytes: int | None
    ) -> None:
        join = self.fleet.present.get(client_id)
        runtime, kernels = (join.runtime, join.kernels) if join else ("", "")
        density = self._spent(client_id, round_number, phases)
        rows = device_rows(round_number, client_id, phases, peak_rss_bytes, runtime, kernels, density)
        self._folder.devices(rows)

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
                self._remember_quarantine(client_id, str(error))

    def _remember_quarantine(self, client_id: str, reason: str) -> None:
        """Keep it over a restart. A full disk must not end the run for it: the client is kept out until then."""
        if self._ledger is None:
            return
        try:
            self._ledger.quarantine(client_id, reason)
        except sqlite3.Error as error:
            log.error("quarantine is forgotten with this process client=%s reason=%s", client_id, error)

    def _receipt(
        self,
        update: Update,
        verdict: Literal["accepted", "late", "duplicate", "rejected", "unknown-mask"],
        reason: str = "",
    ) -> None:
        kept = self._client_masks.knows(update.client_id)
        receipt = Receipt(update.run, update.round_number, update.body.digest, verdict, reason[:1000], kept)
        self.send(update.client_id, receipt)
