"""The MQTT door as a plugin: its settings and its one hook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vellumd import TransportSpec, hookimpl

if TYPE_CHECKING:
    from vellumd import Check, Transport, TransportContext

MAX_PAYLOAD = 1_990_000
"""Bytes below the 2,000,000 of a packet at which Mosquitto 2.1 cuts by default."""


class MqttSettings(BaseModel):
    """Edits by MQTT 3.1.1 or 5, through a broker such as Mosquitto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Whether vellumd connects to the broker.")
    host: str = Field("127.0.0.1", min_length=1, description="The broker's name or address.")
    port: int = Field(1883, ge=1, le=65535, description="The broker's port; 8883 is usual for TLS.")
    protocol: Literal["5", "311"] = Field(
        "5",
        description="What vellumd itself speaks: 5, or 311 for old brokers. Senders are free.",
    )
    instance: str = Field(
        "main",
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="Topics begin with vellumd/<instance>; one for each daemon at a broker.",
    )
    username: str | None = Field(None, description="Name at the broker, where it asks for one.")
    password_file: Path | None = Field(
        None, description="File whose first line is the password at the broker."
    )
    tls: bool = Field(False, description="Whether the connection is encrypted.")
    ca: Path | None = Field(
        None, description="Certificates (PEM) that sign the broker's; unset, the system's."
    )
    max_payload: int = Field(
        MAX_PAYLOAD,
        ge=10_000,
        le=268_000_000,
        description="Bytes of the largest message, where the broker does not tell its limit; "
        "the default stays below Mosquitto 2.1's. Larger results are re-encoded.",
    )
    reply_prefixes: tuple[str, ...] = Field(
        ("vellumd/",),
        description="What a response topic (MQTT 5) may begin with. Anything, by an empty text, "
        "would let senders write to every topic that vellumd may write to.",
    )
    allow_plaintext: bool = Field(
        False,
        description="Whether a password may go without TLS to a broker outside of private "
        "networks, where anybody on the way can read it.",
    )
    discovery: bool = Field(
        False, description="Whether Home Assistant is told of this daemon (homeassistant/...)."
    )


def open_transport(context: TransportContext) -> Transport:
    """The door, made when the daemon starts it; only then is paho loaded."""
    from vellumd_mqtt.transport import MqttTransport

    return MqttTransport(context)


async def check_broker(settings: MqttSettings) -> Iterable[Check]:
    """What doctor says of the broker: see `checks`."""
    from vellumd_mqtt import checks

    return await checks.broker(settings)


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """One transport, `mqtt`."""
    return [TransportSpec("mqtt", MqttSettings, open_transport, checks=(check_broker,))]
