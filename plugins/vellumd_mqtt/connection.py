"""One connection to the broker: paho in its own thread, as the daemon's loop sees it.

A connection is used once. What was received or sent on it is acknowledged on it or not
at all, so that a packet id never means two messages.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from vellumd_mqtt.plugin import MqttSettings

KEEPALIVE_S = 20
CONNECT_S = 5.0
"""Seconds for the TCP connection, and again for the broker's greeting."""
SESSION_S = 7 * 86_400
"""Seconds for which a broker keeps requests for a daemon that is away (MQTT 5)."""
WINDOW = 16
"""Requests that a broker hands over before the first is acknowledged (MQTT 5)."""
RECEIVE_MAX = 32 << 20
"""Bytes of the largest request: brokers drop larger ones (MQTT 5), for a window of them would
take all memory."""
UNHEARD = 0x10
"""Reason code of a broker that took a message for which nobody has subscribed."""
TAKEN_OVER = 0x8E
"""Reason code of a broker that gave this client's name to another connection."""


class Refusal(ConnectionError):
    """The broker does not want this connection; waiting seldom mends it."""


@dataclass(frozen=True)
class Message:
    """A received message. `digest` is that of all that a sender said in it."""

    topic: str
    payload: bytes
    qos: int
    mid: int
    dup: bool
    retain: bool
    digest: str
    content_type: str = ""
    response_topic: str = ""
    correlation: bytes | None = None
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outgoing:
    """A message to send. The last fields are told under MQTT 5 only."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str = ""
    correlation: bytes | None = None
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Greeting:
    """What the broker said: whether it knew us, and how large a packet may be."""

    session_present: bool
    max_packet: int | None


class Connection:
    """From `open` until `lost` says why it ended."""

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: Outgoing | None,
        on_message: Callable[[Connection, Message], None],
        *,
        keep_session: bool = True,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[Greeting] = self._loop.create_future()
        self._unacknowledged: dict[int, asyncio.Future[ReasonCode | None]] = {}
        self._on_message = on_message
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.taken_over = False
        self._five = settings.protocol == "5"
        self._keep_session = keep_session
        self._client = self._make(client_id, will)

    def _make(self, client_id: str, will: Outgoing | None) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=paho.MQTTv5 if self._five else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
            clean_session=None if self._five else not self._keep_session,
        )
        client.connect_timeout = CONNECT_S
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, password(self._settings.password_file))
        if self._settings.tls:
            client.tls_set_context(ssl.create_default_context(cafile=self._settings.ca))
        client.on_socket_open = _send_at_once
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        return client

    async def open(self) -> Greeting:
        """Connect and be greeted. Raises `OSError`, `Refusal` where the broker says no."""
        connecting = self._loop.run_in_executor(None, self._connect)
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # The thread goes on; what it opens would stay open until it is collected.
            connecting.add_done_callback(lambda done: done.exception() or self._client.disconnect())
            raise
        self._client.loop_start()
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._greeted
        except TimeoutError:
            raise TimeoutError("it does not answer") from None

    def _connect(self) -> None:
        options: dict[str, Any] = {}
        if self._five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_S if self._keep_session else 0
            properties.ReceiveMaximum = WINDOW
            properties.MaximumPacketSize = RECEIVE_MAX
            options = {"clean_start": not self._keep_session, "properties": properties}
        self._client.connect(self._settings.host, self._settings.port, KEEPALIVE_S, **options)

    async def subscribe(self, topic: str) -> None:
        """Receive what is sent to `topic`; raises `Refusal` where that is not allowed."""
        if self._five:
            # A retained request is seen as such, and not again at each connection.
            kept = SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=1)
            code, mid = self._client.subscribe(topic, options=kept)
        else:
            code, mid = self._client.subscribe(topic, qos=1)
        reason = await self._acknowledged(code, mid or 0)
        if reason is not None and reason.is_failure:
            raise Refusal(f"this user may not read {topic}")

    def send(self, message: Outgoing) -> asyncio.Future[ReasonCode | None]:
        """Hand a message over; the future is done when the broker has it.

        It raises `ConnectionError` when the connection ends first.
        """
        properties = self._properties(message) if self._five else None
        info = self._client.publish(
            message.topic, message.payload, message.qos, message.retain, properties
        )
        return self._acknowledged(info.rc, info.mid)

    async def publish(self, message: Outgoing) -> bool:
        """Send a message; returns when the broker has it. Raises `OSError`, `Refusal`.

        Returns whether somebody hears it, as far as the broker tells: only MQTT 5 can.
        """
        reason = await self.send(message)
        if reason is not None and reason.is_failure:
            raise Refusal(f"it does not take {message.topic}: {reason}")
        return reason is None or reason.value != UNHEARD

    @staticmethod
    def _properties(message: Outgoing) -> Properties:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if message.content_type:
            properties.ContentType = message.content_type
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.properties:
            properties.UserProperty = list(message.properties)
        return properties

    def ack(self, message: Message) -> None:
        """Tell the broker that a request is safe here."""
        self._client.ack(message.mid, message.qos)

    def leave(self) -> None:
        """End the connection without a word of ours; the broker then speaks the will."""
        self._client.disconnect()

    async def close(self, seconds: float) -> None:
        """Say goodbye; the thread ends by itself. A broker that does not listen is left."""
        self._client.disconnect()
        await asyncio.wait([self.lost], timeout=seconds)

    def _acknowledged(self, code: MQTTErrorCode, mid: int) -> asyncio.Future[ReasonCode | None]:
        future: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or self.lost.done():
            future.set_exception(ConnectionError(paho.error_string(code)))
            future.exception()  # a caller that does not wait need not know
        else:
            self._unacknowledged[mid] = future
        return future

    # in the loop, told by the thread

    def _end(self, reason: str, taken_over: bool) -> None:
        if self.lost.done():
            return
        self.taken_over = taken_over
        self.lost.set_result(reason)
        waiting: list[asyncio.Future[Any]] = [self._greeted, *self._unacknowledged.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError(reason))
                future.exception()
        self._unacknowledged.clear()

    def _greet(self, greeting: Greeting | Refusal) -> None:
        if self._greeted.done():
            return
        if isinstance(greeting, Refusal):
            self._greeted.set_exception(greeting)
        else:
            self._greeted.set_result(greeting)

    def _acknowledge(self, mid: int, reason: ReasonCode | None) -> None:
        future = self._unacknowledged.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(reason)

    # in paho's thread

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _connected(
        self, client: paho.Client, _: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            self._tell(self._greet, Refusal(str(reason)))
            return
        most = getattr(properties, "MaximumPacketSize", None)
        self._tell(self._greet, Greeting(bool(flags.session_present), most))

    def _disconnected(
        self, client: paho.Client, _: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        taken = flags.is_disconnect_packet_from_server and reason.value == TAKEN_OVER
        self._tell(self._end, str(reason), taken)

    def _received(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # no broker lets that through
            client.ack(message.mid, message.qos)
            return
        told = message.properties
        said: dict[str, Any] = {
            "content_type": getattr(told, "ContentType", ""),
            "response_topic": getattr(told, "ResponseTopic", ""),
            "correlation": getattr(told, "CorrelationData", None),
            "properties": dict(getattr(told, "UserProperty", ())),
        }
        digest = hashlib.sha256(repr((topic, said)).encode())
        digest.update(message.payload)
        received = Message(
            topic=topic,
            payload=bytes(message.payload),
            qos=message.qos,
            mid=message.mid,
            dup=message.dup,
            retain=message.retain,
            digest=digest.hexdigest(),
            **said,
        )
        self._tell(self._on_message, self, received)

    def _published(
        self, client: paho.Client, _: Any, mid: int, reason: ReasonCode, properties: Any
    ) -> None:
        self._tell(self._acknowledge, mid, reason)

    def _subscribed(
        self, client: paho.Client, _: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        self._tell(self._acknowledge, mid, reasons[0] if reasons else None)


def _send_at_once(client: paho.Client, _: Any, sock: Any) -> None:
    """Small packets wait for no others: that would cost 40 ms at each (measured)."""
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def password(file: Path | None) -> str | None:
    """The password in `file`: its first line. Raises `OSError`."""
    if file is None:
        return None
    return file.read_text("utf-8-sig").partition("\n")[0].rstrip("\r")
