"""The embedded broker: aMQTT in a thread, for a coordinator that should need nothing beside it.

Never anonymous, and never with aMQTT's default configuration (which is: all interfaces, anonymous).
Who may do what follows from the table in `protocol/topics.py`:

    coordinator         everything below sf/1/<fleet>/
    any other user      publishes what the table says clients send, as the client of its MQTT client id;
                        subscribes to its own tasks and wants, to blobs, and to the coordinator's state

A user may connect with the client id of another device, and cut it off. Where devices do not trust each
other, use mosquitto with one user per device (broker_files.py).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, BrokerError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from protocol import topics
from protocol.broker_url import EVERYWHERE
from protocol.errors import ConfigError, TransportError
from protocol.topics import Topics, check_name

COORDINATOR_USER = "coordinator"
START_S = 10.0
STOP_S = 10.0
CONNECT_S = 10.0  # From the TCP connection to a whole CONNECT.
MAX_PACKET_BYTES = 1 << 20
MAX_CONNECTIONS = 1000

_log = logging.getLogger(__name__)


def may_publish(fleet: Topics, username: str, client_id: str, topic: str) -> bool:
    """Whether a user that connected as `client_id` may publish on a topic."""
    if username == COORDINATOR_USER:
        return topic.startswith(fleet.root)
    address = fleet.parse(topic)
    return address is not None and address.rule.sender == topics.CLIENT and address.client_id == client_id


def may_subscribe(fleet: Topics, username: str, client_id: str, topic_filter: str) -> bool:
    """Whether a user that connected as `client_id` may subscribe to a filter."""
    if username == COORDINATOR_USER:
        return topic_filter.startswith(fleet.root)
    own = (*fleet.client_filters(client_id), fleet.repeats(client_id))
    if topic_filter in (*own, fleet.root + "blob/#", fleet.root + "blob/+"):
        return True
    address = fleet.parse(topic_filter)
    if address is None:
        return False
    return address.rule.sender == topics.COORDINATOR and address.client_id in (None, client_id)


class Gate(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # aMQTT is not typed.
    """The plugin by which aMQTT asks us: who is it, and may they?"""

    @dataclass
    class Config:
        """What aMQTT hands to the plugin."""

        fleet: str
        users: dict[str, str] = field(repr=False)

    def __init__(self, context: BaseContext) -> None:
        """Called by aMQTT, with our Config in the context."""
        super().__init__(context)
        config: Any = context.config
        self._fleet = Topics(config.fleet)
        self._users: dict[str, str] = config.users
        self._nobody = secrets.token_hex()

    async def authenticate(self, *, session: Session) -> bool | None:
        """Check name and password in constant time, and what a later check would miss."""
        username, client_id = session.username or "", session.client_id or ""
        expected = self._users.get(username, self._nobody)
        given = session.password or ""
        if not hmac.compare_digest(expected.encode(), given.encode()) or username not in self._users:
            _log.warning("Refused: unknown user or wrong password. user=%r client=%r", username, client_id)
            return False
        try:
            check_name("client id", client_id)
        except ConfigError as error:
            _log.warning("Refused: %s. user=%r", error, username)
            return False
        # aMQTT publishes a will without asking whether its sender may.
        if session.will_flag and not may_publish(self._fleet, username, client_id, session.will_topic or ""):
            _log.warning("Refused: a will on %r. user=%r client=%r", session.will_topic, username, client_id)
            return False
        return True

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Apply the table. What was subscribed may be received."""
        if session is None or topic is None or session.username not in self._users:
            return False
        if action == Action.RECEIVE:
            return True
        rule = may_publish if action == Action.PUBLISH else may_subscribe
        is_allowed = rule(self._fleet, session.username, session.client_id or "", topic)
        if not is_allowed:
            _log.warning("Denied. client=%r action=%s topic=%r", session.client_id, action, topic)
        return is_allowed


class _Reader(StreamReaderAdapter):  # type: ignore[misc]
    """What a client sends, but no packet of 256 MB: aMQTT has no limit of its own."""

    async def read(self, n: int = -1) -> bytes:
        """Read n bytes; an error ends the connection."""
        if n > MAX_PACKET_BYTES:
            raise BrokerError(f"a packet of {n} bytes; at most {MAX_PACKET_BYTES} are read")
        data: bytes = await super().read(n)
        return data


class _Subscriptions(dict[str, Any]):
    """A dictionary that may change while it is iterated over.

    aMQTT awaits in the middle: a client that subscribes meanwhile would end the handler of the one
    that is being connected, or the delivery of a packet ("dictionary changed size during iteration").
    """

    def __iter__(self) -> Iterator[str]:
        """Iterate over what there is now."""
        return iter(list(super().__iter__()))

    def items(self) -> Any:
        """Iterate over what there is now; the lists of subscribers are copies too."""
        return [(topic, list(subscribers)) for topic, subscribers in super().items()]


class _Broker(Broker):  # type: ignore[misc]
    """aMQTT 0.12, with what it lacks towards strangers.

    It touches the session of a client id before the password is known, so that anybody could cut a
    device off by guessing. Here the older session ends when the new one has been accepted, and its
    connection is closed, as MQTT says. And it waits for ever for those who connect and say nothing.
    """

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config)
        self._subscriptions: dict[str, Any] = _Subscriptions()
        self._silent: set[asyncio.Task[Any]] = set()  # Connections that have not said CONNECT.

    async def shutdown(self) -> None:
        """Stop; asyncio would wait for the silent ones."""
        silent = list(self._silent)
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
        await super().shutdown()

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection."""
        try:
            await self._client_connected(listener_name, _Reader(reader), StreamWriterAdapter(writer))
        except asyncio.CancelledError:
            pass  # The broker stops. Left to asyncio, this would be logged as an error.
        finally:
            writer.close()  # aMQTT forgets those that end before they are connected: a file descriptor each.

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, *address: Any
    ) -> tuple[BrokerProtocolHandler, Session]:
        task = asyncio.current_task()
        assert task is not None
        self._silent.add(task)
        try:
            connecting = super()._initialize_client_session(reader, writer, *address)
            session: tuple[BrokerProtocolHandler, Session] = await asyncio.wait_for(connecting, CONNECT_S)
            return session
        except asyncio.TimeoutError as error:
            await writer.close()
            raise BrokerError(f"no CONNECT within {CONNECT_S} s") from error
        except (ValueError, LookupError) as error:  # aMQTT would not count the connection as ended.
            raise BrokerError(f"no CONNECT: {error}") from error
        finally:
            self._silent.discard(task)

    async def _delete_session(self, client_id: str) -> None:
        """Not now: this is called before `_authenticate`."""

    async def _authenticate(self, session: Session, listener: ListenerConfig) -> bool:
        if await super()._authenticate(session, listener):
            await self._cleanup_session(session.client_id or "")
            return True
        # aMQTT registers the session in any case, and never forgets it: let that be under another id.
        session.client_id = f"refused-{secrets.token_hex(8)}"
        asyncio.get_running_loop().call_later(1, self._sessions.pop, session.client_id, None)
        return False


class EmbeddedBroker:
    """A broker while it is entered:  with EmbeddedBroker(users=..., fleet="lab") as broker: broker.url."""

    def __init__(
        self,
        users: Mapping[str, str],
        fleet: str,
        bind: str = "127.0.0.1",
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Port 0 chooses a free one; it is kept over stop and start. With certificate and key it speaks TLS only.

        Raises:
            ConfigError: no user, an empty password, or a bad fleet name.
        """
        if not users or not all(users.values()):
            raise ConfigError("the broker needs users, and each of them a password")
        self._fleet = Topics(fleet).fleet
        self._users = dict(users)
        self._bind = bind
        self._port = port
        self._certificate = certificate
        self._thread: threading.Thread | None = None
        self._broker: _Broker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._is_started = threading.Event()
        self._problem: Exception | None = None

    @property
    def port(self) -> int:
        """The TCP port; 0 before the first start if none was given."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients on this machine connect."""
        host = "127.0.0.1" if self._bind in EVERYWHERE else self._bind
        return f"{'mqtts' if self._certificate else 'mqtt'}://{host}:{self._port}"

    def start(self) -> None:
        """Listen; returns when clients can connect.

        Raises:
            TransportError: the address cannot be used, most often because another broker has the port.
        """
        if self._thread is not None:
            raise RuntimeError("the broker is started already")
        # One look at the port of our own: aMQTT reports its failure as a logged traceback.
        self._port = _free_port(self._bind, self._port)
        # The packets and events that aMQTT logs at INFO are not worth a line each.
        logging.getLogger("amqtt").setLevel(logging.WARNING)
        logging.getLogger("transitions").setLevel(logging.WARNING)
        logging.getLogger("amqtt.broker").addFilter(_is_worth_a_traceback)
        self._is_started.clear()
        self._problem = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)
        self._thread.start()
        if not self._is_started.wait(START_S):
            raise TransportError(f"the embedded broker did not start within {START_S} s")
        if self._problem is not None:
            self._thread.join()
            self._thread = None
            raise TransportError(
                f"the embedded broker at {self.url} failed: {self._problem}"
            ) from self._problem

    def stop(self) -> None:
        """Disconnect all and release the port. What is under way is lost, as with any broker."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(2 * STOP_S)
        self._thread = None

    def __enter__(self) -> EmbeddedBroker:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._problem = error
            if self._is_started.is_set():
                _log.exception("The embedded broker died. url=%s", self.url)
        finally:
            self._is_started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        certificate, key = self._certificate or (None, None)
        listener = ListenerConfig(
            bind=f"{self._bind}:{self._port}",
            max_connections=MAX_CONNECTIONS,
            ssl=certificate is not None,
            certfile=certificate,
            keyfile=key,
        )
        gate = {f"{Gate.__module__}.{Gate.__qualname__}": {"fleet": self._fleet, "users": self._users}}
        self._broker = broker = _Broker(BrokerConfig(listeners={"default": listener}, plugins=gate))
        await broker.start()
        self._is_started.set()
        await self._stopping.wait()
        try:
            await asyncio.wait_for(broker.shutdown(), STOP_S)
        except (asyncio.TimeoutError, AMQTTError) as error:
            _log.warning("The embedded broker did not stop in order. url=%s error=%r", self.url, error)


def _is_worth_a_traceback(record: logging.LogRecord) -> bool:
    """Not a client that needs more than 5 s for a chunk: aMQTT has warned in one line already."""
    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))


def _free_port(bind: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        TransportError: it is in use, or the address is not of this machine.
    """
    try:
        with socket.create_server((bind, port)) as probe:
            free: int = probe.getsockname()[1]
            return free
    except OSError as error:
        raise TransportError(
            f"the embedded broker cannot listen on {bind}, port {port}: {error.strerror}. "
            "Does another broker run there? Choose another port, or use that broker"
        ) from error
