"""The way to the broker: connected again and again, for as long as the door is open."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from vellumd import TransportContext, errors
from vellumd_mqtt.connection import Connection, Greeting, Message, Outgoing, Refusal
from vellumd_mqtt.plugin import MqttSettings
from vellumd_mqtt.topics import Topics

RETRY_S = 3.0
"""Most seconds between two tries while the broker is away: with the connection's own time
a returned broker is found within five."""
AGAIN_S = 60.0
"""Most seconds before a broker is bothered again that ends or refuses our connections."""
STEADY_S = 10.0
"""Seconds after which a connection counts as a good one."""
GOODBYE_S = 1.0
TAKEN_OVER = "taken_over"
"""How it is counted that another client of our name threw us out."""


class Link:
    """Holds the one connection. `connected()` waits for it.

    `on_open` is called with each new connection before it is offered, `on_subscribed` once
    the broker has answered that it will send requests.
    """

    def __init__(
        self,
        context: TransportContext,
        topics: Topics,
        on_message: Callable[[Connection, Message], None],
        on_open: Callable[[Connection, Greeting], Awaitable[None]],
        on_subscribed: Callable[[Connection], None],
    ) -> None:
        self._context = context
        self._settings: MqttSettings = context.settings
        self._topics = topics
        self._on_message = on_message
        self._on_open = on_open
        self._on_subscribed = on_subscribed
        self._current: Connection | None = None
        self._opened = asyncio.Condition()
        self._warned = False
        self.max_payload = self._settings.max_payload
        self.opened = 0.0
        """When the connection was opened, on the loop's clock."""
        self.unwritten = False
        """Whether the broker may have acknowledged what it has not written.

        Mosquitto writes all it has when something is retained, queued for somebody who is
        away, or acknowledged by a receiver. A message that it hands on at once to somebody
        connected is none of these (2.0 and 2.1: `persistence_changes`), and lost if it is killed
        before one of them.
        """

    async def check_files(self) -> None:
        """Raises `ConfigError` for a file that is not there."""
        settings = self._settings
        for key, file in (("password_file", settings.password_file), ("ca", settings.ca)):
            if not await asyncio.to_thread(_is_readable, file):
                raise errors.ConfigError(
                    f"plugins.mqtt.{key}: the file cannot be read. Make it, or drop the key."
                )

    async def connected(self) -> Connection:
        """The connection, as soon as there is one."""
        async with self._opened:
            while self._current is None or self._current.lost.done():
                await self._opened.wait()
            return self._current

    def post(self, message: Outgoing) -> None:
        """Send what may be lost: nothing happens without a connection."""
        if self._current is not None and not self._current.lost.done():
            self._current.send(message)

    async def publish(self, message: Outgoing) -> bool:
        """Return when a broker has the message, over as many connections as that takes.

        Returns whether somebody hears it. Raises `Refusal` when the broker does not want it.
        """
        while True:
            connection = await self.connected()
            try:
                return await connection.publish(message)
            except Refusal:
                raise
            except ConnectionError:
                await asyncio.wait([connection.lost], timeout=1)

    async def run(self) -> None:
        """Keep connected until cancelled; then say goodbye."""
        loop = asyncio.get_running_loop()
        self._context.count(TAKEN_OVER, 0)
        away = cuts = 0
        while True:
            self.opened = loop.time()
            connection: Connection | None = None
            try:
                connection = await self._open()
                reason = await asyncio.shield(connection.lost)
                away, welcome = 0, not connection.taken_over
            except (OSError, Refusal) as error:
                reason = str(error) or type(error).__name__
                away, welcome = away + 1, not isinstance(error, Refusal)
            except asyncio.CancelledError:
                await self._goodbye()
                raise
            self._current = None
            cut = connection is not None and loop.time() - self.opened < STEADY_S
            if welcome and cut:  # a broker that ended itself does not answer
                welcome = not await self._answers()
            cuts = 0 if welcome else cuts + 1
            # Only MQTT 5 says why; before it, a connection cut soon by a broker that is there.
            if connection is not None and (connection.taken_over or cuts > 1):
                self._context.count(TAKEN_OVER)
            if cuts > 1 and connection is not None:
                reason = (
                    f"it ends our connections, as if another client connects as "
                    f"{self._client_id()!r}: give each daemon its own plugins.mqtt.instance"
                )
            self._context.report(False, f"{self._where()}: {reason}; tried again by itself")
            await asyncio.sleep(pause(away, cuts))

    async def _answers(self) -> bool:
        """Whether somebody listens there right now."""
        try:
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(self._settings.host, self._settings.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _open(self) -> Connection:
        if await shows_password(self._settings) and not self._warned:
            self._warned = True
            self._context.log.warning("the broker's password goes over the network as it is")
        will = self._presence(online=False)
        connection = Connection(self._settings, self._client_id(), will, self._on_message)
        try:
            await self._introduce(connection, await connection.open())
        except BaseException:
            connection.leave()
            raise
        self._context.report(True, f"connected to {self._where()} as {self._topics.base}")
        return connection

    async def _introduce(self, connection: Connection, greeting: Greeting) -> None:
        """From the broker's greeting to being online, which is told last."""
        self._current = connection
        told = greeting.max_packet
        # Topic and properties are counted in; a tenth of a percent is far more than they take.
        self.max_payload = self._settings.max_payload if told is None else told - 4096
        await self._on_open(connection, greeting)
        await connection.subscribe(self._topics.requests)
        self._on_subscribed(connection)
        await connection.publish(self._presence(online=True))
        async with self._opened:
            self._opened.notify_all()

    def _presence(self, *, online: bool) -> Outgoing:
        return Outgoing(self._topics.state, b"online" if online else b"offline", retain=True)

    async def _goodbye(self) -> None:
        """Leave nothing waiting for long: the will says the same if the broker is slow."""
        if self._current is None or self._current.lost.done():
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._current.publish(self._presence(online=False))
        except (OSError, TimeoutError):
            pass
        await self._current.close(GOODBYE_S)

    def _client_id(self) -> str:
        return f"vellumd-{self._settings.instance}"

    def _where(self) -> str:
        return f"broker {self._settings.host}:{self._settings.port}"


async def shows_password(settings: MqttSettings) -> bool:
    """Whether the password goes over the network as it is.

    Raises `Refusal` where strangers could read it on the way.
    """
    if settings.password_file is None or settings.tls:
        return False
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    near = all(is_near(str(address[0])) for *_, address in found)
    if not near and not settings.allow_plaintext:
        raise Refusal(
            "its address is a public one, where the password could be read on the way. Set "
            "plugins.mqtt.tls = true, or allow it with plugins.mqtt.allow_plaintext = true"
        )
    return True


def pause(away: int, cuts: int) -> float:
    """Seconds to wait, jittered: a broker that returns is not met by all at once.

    `away`: tries in a row that found nobody; `cuts`: connections in a row that the broker
    did not want, or ended soon.
    """
    most = min(RETRY_S, 0.5 * 2.0**away)
    if cuts > 1:
        most = min(AGAIN_S, 2.0 ** (cuts + 1))
    return random.uniform(most / 2, most)


def _is_readable(file: Path | None) -> bool:
    """Whether a file is none, or one that can be read as text."""
    try:
        return file is None or bool(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return False


def is_near(address: str) -> bool:
    """Whether an address is this machine's, a private network's or link-local."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return found.is_loopback or found.is_private or found.is_link_local
