"""A proxy between MQTT clients and their broker that does to packets what networks and brokers do.

    client --> Pipe with the faults of "up"   --> broker
    client <-- Pipe with the faults of "down" <-- broker

Runs in a thread; all methods may be called from any other while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from protocol.errors import ConfigError, TransportError
from tools.chaos.faults import BOTH, DOWN, LINK, PACKET, UP
from tools.chaos.pipe import Conditions, Pipe

START_S = 10.0

log = logging.getLogger(__name__)


class FaultProxy:
    """Listens while it is entered:  with FaultProxy("127.0.0.1", 1883) as proxy: proxy.url."""

    def __init__(
        self, broker_host: str, broker_port: int, host: str = "127.0.0.1", port: int = 0, seed: int = 0
    ) -> None:
        """Pass everything unharmed until `set`, `stall` or `cut`. Port 0 takes a free one."""
        self.broker, self.host, self.port, self.seed = (broker_host, broker_port), host, port, seed
        self._conditions = Conditions()
        self.counts = self._conditions.counts  # What was done, by fault; "connections", "packets".
        self._cut_until_s = 0.0
        self._connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._is_started = threading.Event()
        self._problem: OSError | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True
        )

    @property
    def url(self) -> str:
        """Where clients connect instead of to the broker."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def set(self, name: str, value: float, direction: str = BOTH) -> None:
        """Change a packet or link fault, also of open connections; 0 ends it.

        Raises:
            ConfigError: there is no such fault of packets or links.
        """
        if name not in (*PACKET, *LINK):
            raise ConfigError(f"{name!r} is no fault of packets or links: {', '.join((*PACKET, *LINK))}")
        for one in (UP, DOWN) if direction == BOTH else (direction,):
            self._conditions.faults[one] = {**self._conditions.faults[one], name: value}

    def clear(self) -> None:
        """End every fault."""
        for name in (*PACKET, *LINK):
            self.set(name, 0.0)
        self._cut_until_s = self._conditions.stall_until_s = 0.0

    def cut(self, length_s: float = 0.0) -> None:
        """Reset all connections, and each new one for so long."""
        self._cut_until_s = time.monotonic() + length_s
        self._in_loop(self._reset_all)

    def stall(self, length_s: float) -> None:
        """Let nothing pass for so long, and then everything that waited."""
        self._conditions.stall_until_s = time.monotonic() + length_s
        self.counts["stall"] += 1

    def __enter__(self) -> FaultProxy:
        """Listen.

        Raises:
            TransportError: the address cannot be used.
        """
        self._thread.start()
        if not self._is_started.wait(START_S) or self._problem is not None:
            raise TransportError(f"cannot listen on {self.host}, port {self.port}: {self._problem}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reset all connections and stop."""
        assert self._stopping is not None
        self._in_loop(self._stopping.set)
        self._thread.join(START_S)

    # In the loop's thread

    def _in_loop(self, function: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function)

    def _reset_all(self) -> None:
        self.counts["cut"] += 1
        for connection in list(self._connections):
            connection.task.cancel()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._accept, self.host, self.port)
        except OSError as error:
            self._problem = error
            self._is_started.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._is_started.set()
        await self._stopping.wait()
        server.close()
        ending = [connection.task for connection in self._connections]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.counts["connections"]
        self.counts["connections"] += 1
        if time.monotonic() < self._cut_until_s:
            self.counts["refused"] += 1
            await _abort(writer)
            return
        try:
            broker = await asyncio.open_connection(*self.broker)
        except OSError as error:
            log.warning("the broker is not there broker=%s:%d reason=%s", *self.broker, error)
            await _abort(writer)
            return
        connection = _Connection(self._conditions, f"{self.seed} {number}", (reader, writer), broker)
        self._connections.add(connection)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await connection.run()
        finally:
            self._connections.discard(connection)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One client's connection and ours to the broker on its behalf. Cancelling its task resets both."""

    def __init__(self, conditions: Conditions, seed: str, client: Streams, broker: Streams) -> None:
        self.client, self.broker = client, broker
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.up = Pipe(conditions, UP, f"{seed} up", client[0], broker[1])
        self.down = Pipe(conditions, DOWN, f"{seed} down", broker[0], client[1])
        self.up.back, self.down.back = self.down, self.up

    async def run(self) -> None:
        """Pass on until either side ends; what it had sent before still arrives."""
        pipes = [asyncio.create_task(pipe.run()) for pipe in (self.up, self.down)]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pipes:
                task.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            await _abort(self.client[1], self.broker[1])


async def _abort(*writers: asyncio.StreamWriter) -> None:
    """Reset connections and wait until they are gone."""
    for writer in writers:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
