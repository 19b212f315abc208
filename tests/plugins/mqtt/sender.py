"""A program that sends edits over MQTT and waits for answers, as users' programs do."""

from __future__ import annotations

import base64
import json
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from vellumd.testing import free_port

WAIT_S = 20.0


@dataclass(frozen=True)
class Got:
    """A message that came."""

    topic: str
    payload: bytes
    retain: bool
    type: str = ""
    correlation: bytes | None = None
    properties: tuple[tuple[str, str], ...] = ()
    at: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))

    @property
    def json(self) -> dict[str, Any]:
        """The payload as an object."""
        answer: dict[str, Any] = json.loads(self.payload)
        return answer


class Sender:
    """Connected by the constructor, and again by itself whenever the broker was away."""

    def __init__(
        self,
        port: int,
        *,
        five: bool = True,
        name: str = "",
        base: str = "vellumd/main",
        user: tuple[str, str] | None = None,
    ):
        self.base = base
        self._five = five
        self._queues: dict[str, queue.SimpleQueue[Got]] = defaultdict(queue.SimpleQueue)
        self.got: list[Got] = []
        self._ready = threading.Event()
        protocol = paho.MQTTv5 if five else paho.MQTTv311
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            name or f"sender-{free_port()}",
            protocol=protocol,
            clean_session=None if five else False,
        )
        if user:
            self._client.username_pw_set(*user)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_socket_open = lambda _, __, one: one.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._received
        options: dict[str, Any] = {}
        if five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3600
            options = {"clean_start": False, "properties": properties}
        self._client.connect("127.0.0.1", port, 60, **options)
        self._client.loop_start()
        assert self._ready.wait(WAIT_S), "the broker did not answer"

    def close(self) -> None:
        """Hang up."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, *_: Any) -> None:
        topics = [f"{self.base}/{part}" for part in ("response/#", "result/#", "progress/#")]
        topics += [f"{self.base}/{part}" for part in ("state", "info", "queue")] + ["vellumd/x/#"]
        if self._five:
            self._client.subscribe([(topic, SubscribeOptions(1)) for topic in topics])
        else:
            self._client.subscribe([(topic, 1) for topic in topics])

    def _received(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        told = message.properties
        got = Got(
            message.topic,
            bytes(message.payload),
            message.retain,
            getattr(told, "ContentType", ""),
            getattr(told, "CorrelationData", None),
            tuple(getattr(told, "UserProperty", ())),
        )
        self.got.append(got)
        self._queues[message.topic].put(got)

    def story(self) -> list[str]:
        """Whether it is connected, and what came, a line each."""
        came = [f"{got.at} {got.topic} {got.payload[:100]!r}" for got in list(self.got)]
        return [*came, "connected" if self._client.is_connected() else "away"]

    # sending

    def publish(
        self,
        topic: str,
        payload: bytes | dict[str, Any] | str = b"",
        *,
        qos: int = 1,
        retain: bool = False,
        wait: bool = True,
        **properties: Any,
    ) -> None:
        """Send below the base; returns when the broker has it. Raises `OSError`."""
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        told = None
        if self._five:
            told = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(told, name, value)
        end = time.monotonic() + WAIT_S
        while wait and not self._client.is_connected() and time.monotonic() < end:
            time.sleep(0.005)
        info = self._client.publish(f"{self.base}/{topic}", payload, qos, retain, told)
        if not wait:
            return
        try:
            info.wait_for_publish(WAIT_S)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from None
        if not info.is_published():
            raise TimeoutError("the broker does not acknowledge")

    def edit(self, picture: bytes, prompt: str = "invert", **fields: Any) -> None:
        """Ask for an edit, in JSON."""
        self.publish("request/edit", {"image": b64(picture), "prompt": prompt, **fields})

    # receiving

    def next(self, topic: str, seconds: float = WAIT_S) -> Got:
        """The next message of a topic below the base; raises `TimeoutError`."""
        try:
            return self._queues[f"{self.base}/{topic}"].get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"nothing came on {topic}") from None

    def until(self, wanted: Callable[[Got], bool], seconds: float = WAIT_S) -> Got:
        """The first message of all that came, or come, that is wanted."""
        end, seen = time.monotonic() + seconds, 0
        while True:
            found = len(self.got)
            for got in self.got[seen:found]:
                if wanted(got):
                    return got
            seen = found
            if time.monotonic() > end:
                raise TimeoutError("what was wanted did not come")
            time.sleep(0.005)

    def ask(self, verb: str, payload: bytes | dict[str, Any] | str = b"") -> dict[str, Any]:
        """The answer to a command."""
        self.publish(f"request/{verb}", payload)
        return self.next(f"response/{verb}").json


def b64(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode()
