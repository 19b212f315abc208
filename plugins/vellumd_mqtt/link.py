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


class Link:
    """Holds the one connection. `connected()` waits for it.

    `on_open` is called with each new connection before it is offered.
    """

    def __init__(
        self,
        context: TransportContext,
        topics: Topics,
        on_message: Callable[[Connection, Message], None],
        on_open: Callable[[Connection, Greeting], Awaitable[None]],
    ) -> None:
        self._context = context
        self._settings: MqttSettings = context.settings
        self._topics = topics
        self._on_message = on_message
        self._on_open = on_open
        self._current: Connection | None = None
        self._opened = asyncio.Condition()
        self._warned = False
        self.max_payload = self._settings.max_payload

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

    async def publish(self, message: Outgoing) -> None:
        """Return when a broker has the message, over as many connections as that takes.

        Raises `Refusal` when it does not want it.
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
        unwelcome = 0
        while True:
            connection: Connection | None = None
            began = asyncio.get_running_loop().time()
            try:
                connection = await self._open()
                reason = await asyncio.shield(connection.lost)
            except (OSError, Refusal) as error:
                reason = str(error) or type(error).__name__
                refused = isinstance(error, Refusal)
            except asyncio.CancelledError:
                await self._goodbye()
                raise
            else:
                refused = connection.taken_over
            self._current = None
            steady = asyncio.get_running_loop().time() - began > STEADY_S
            cut = connection is not None and not steady
            unwelcome = unwelcome + 1 if refused or cut else 0
            await self._pause(reason, refused, unwelcome, connection)

    async def _pause(
        self, reason: str, refused: bool, unwelcome: int, connection: Connection | None
    ) -> None:
        """Wait before the next try: longer each time where the broker does not want us."""
        if connection is not None and connection.taken_over:
            reason = (
                f"another client connects as {self._client_id()!r}: give each daemon at a broker "
                "its own plugins.mqtt.instance"
            )
        self._context.report(False, f"{self._where()}: {reason}; tried again by itself")
        # A single cut is no unwelcome: it may be a restart.
        ceiling = 2.0 ** (unwelcome if refused else unwelcome - 3)
        ceiling = min(AGAIN_S, max(RETRY_S, ceiling))
        if connection is not None:
            ceiling /= 2  # it answered a moment ago
        await asyncio.sleep(random.uniform(0.3, 1) * ceiling)

    async def _open(self) -> Connection:
        await self._check_password()
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

    async def _check_password(self) -> None:
        """Refuse to show a password to strangers; raises `Refusal`."""
        if self._settings.password_file is None or self._settings.tls:
            return
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            self._settings.host, self._settings.port, type=socket.SOCK_STREAM
        )
        if all(is_near(str(address[0])) for *_, address in found):
            if not self._warned:
                self._context.log.warning("the broker's password goes over the network as it is")
            self._warned = True
        elif not self._settings.allow_plaintext:
            raise Refusal(
                "its address is a public one, where the password could be read on the way. Set "
                "plugins.mqtt.tls = true, or allow it with plugins.mqtt.allow_plaintext = true"
            )


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
