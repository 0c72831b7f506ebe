"""Pairing, on the device: shows its coordinator that it knows the code, and keeps the coordinator's key."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from edge_client import notify
from edge_client.trust import Trust
from protocol.errors import ConfigError, ProtocolError
from protocol.messages import Hello, Pair, Paired, Signed, decode
from protocol.pairing import NONCE_BYTES, Exchange, is_proof, read_code
from protocol.topics import HELLO, TASK, UPDATE, Topics
from protocol.transport import Transport

log = logging.getLogger(__name__)

REPEAT_S = 5.0
PATIENCE_S = 60.0  # With a coordinator that is there and does not answer.
TICK_S = 0.25


def pair(
    transport: Transport,
    topics: Topics,
    client_id: str,
    trust: Trust,
    code: str,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when the coordinator's key is known, however long it takes until there is a coordinator.

    Raises:
        ConfigError: the code is none, or a coordinator is there and does not accept it.
        TransportError: the connection is closed.
        OSError: the key cannot be written down.
    """
    exchange, code, nonce = None, read_code(code), secrets.token_bytes(NONCE_BYTES)
    update, task = topics.of(UPDATE, client_id), topics.of(TASK, client_id)
    for topic in (topics.of(HELLO), task):
        transport.subscribe(topic)
    first_s = said_s = clock()
    log.warning("waiting for a coordinator to pair with fleet=%s client=%s", topics.fleet, client_id)
    notify.status("connected, waiting for a coordinator to pair with")
    while True:
        notify.beat()
        packet = transport.receive(TICK_S)
        try:
            message = decode(packet.payload) if packet is not None else None
            if isinstance(message, Signed):  # Its signature says nothing yet: whose should it be?
                message = decode(message.payload)
        except ProtocolError:
            continue
        now_s = clock()
        if isinstance(message, Hello) and message.online and message.public_key:
            found = Exchange(topics.fleet, client_id, trust.public, message.public_key, nonce)
            if found != exchange:
                exchange, first_s, said_s = found, now_s, now_s - REPEAT_S
        if exchange is None:
            continue
        if isinstance(message, Paired) and is_proof(message.proof, exchange.coordinator_proof(code)):
            trust.pin(exchange.coordinator_key)
            log.warning("paired fleet=%s client=%s", topics.fleet, client_id)
            return
        if now_s - first_s > PATIENCE_S:
            raise ConfigError(
                f"the coordinator has not answered to the pairing code for {PATIENCE_S:.0f} s. Is it mistyped, used "
                f"up, or of another fleet than {topics.fleet!r}; or is another device called {client_id!r} already? "
                "Look at `sparsefleet fleet list` there, and make a new code with: sparsefleet fleet code"
            )
        if now_s - said_s >= REPEAT_S:
            said_s, proof = now_s, exchange.device_proof(code)
            offer = Pair(client_id, trust.public, exchange.coordinator_key, nonce, proof)
            transport.publish(update, trust.seal(update, offer))
