"""What `vellumd doctor` says of the broker: reached, kept sessions, what it loses or cuts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from vellumd import Check, new_job_id
from vellumd_mqtt.connection import Connection, Greeting, Message, Outgoing, Refusal
from vellumd_mqtt.link import is_near, shows_password
from vellumd_mqtt.plugin import MqttSettings
from vellumd_mqtt.topics import Topics

VERSION = "$SYS/broker/version"
VERSION_S = 1.0
"""Seconds in which a broker that tells its version has told it."""
MOSQUITTO = Path("/etc/mosquitto/mosquitto.conf")
LEAST, CUTS = (2, 0, 16), (2, 1)
"""Mosquitto before the first has known holes; from the second on it cuts packets by default."""
QUEUED = 10_000
"""Jobs that a daemon holds by default (`limits.queue`)."""
KEEPS = {"persistence": "true", "autosave_on_changes": "true", "autosave_interval": "1"}
"""With less, Mosquitto loses acknowledged messages when it is killed (measured)."""


async def broker(settings: MqttSettings, conf: Path = MOSQUITTO) -> list[Check]:
    """Every finding; `conf` is where a broker of this machine has its configuration."""
    name = f"vellumd-doctor-{new_job_id()[-12:]}"
    where = f"broker {settings.host}:{settings.port}"
    try:
        shown = await shows_password(settings)
        greeting, version = await _visit(settings, name, keep=True)
        again, _ = await _visit(settings, name, keep=True)
        await _visit(settings, name, keep=False)
    except (OSError, Refusal) as error:
        return [Check(False, f"{where}: {error}. Start it, or correct [plugins.mqtt].")]
    return [
        Check(True, f"{where} answers{f' ({version})' if version else ''}"),
        Check(
            again.session_present,
            "it keeps sessions while vellumd is away"
            if again.session_present
            else "it keeps no sessions: requests are lost while vellumd is away. Allow persistent "
            "clients at the broker.",
        ),
        *_password(shown),
        *await _rights(settings, name),
        _limit(settings, greeting, version),
        *_age(version),
        *await asyncio.to_thread(lambda: list(_persistence(settings, conf))),
    ]


async def _visit(settings: MqttSettings, name: str, *, keep: bool) -> tuple[Greeting, str]:
    """Connect under `name`; the broker's greeting and, where it is told, its version."""
    versions: asyncio.Queue[str] = asyncio.Queue()

    def take(_: Connection, message: Message) -> None:
        versions.put_nowait(message.payload.decode("utf-8", "replace"))

    connection = Connection(settings, name, None, take, keep_session=keep)
    try:
        greeting = await connection.open()
        version = ""
        if keep and not greeting.session_present:
            try:
                async with asyncio.timeout(VERSION_S):
                    await connection.subscribe(VERSION)
                    version = await versions.get()
            except (TimeoutError, Refusal):
                pass
        return greeting, version
    finally:
        await connection.close(VERSION_S)


def _password(shown: bool) -> Iterator[Check]:
    if shown:
        text = "note: the password goes over the network as it is; plugins.mqtt.tls hides it"
        yield Check(True, text)


async def _rights(settings: MqttSettings, name: str) -> list[Check]:
    """Whether vellumd's user may write its topics. Only MQTT 5 tells; nobody reads this one."""
    if settings.protocol != "5":
        return []
    topic = Topics(settings.instance).response("doctor", name)
    connection = Connection(settings, name, None, lambda _, __: None, keep_session=False)
    try:
        await connection.open()
        await connection.publish(Outgoing(topic, b""))
    except Refusal as refusal:
        return [Check(False, f"{refusal}. Give the user the rights of config/mosquitto.acl.")]
    except OSError as error:
        return [Check(False, f"it ends the connection when something is sent: {error}")]
    finally:
        await connection.close(VERSION_S)
    return [Check(True, "it takes what vellumd sends")]


def _limit(settings: MqttSettings, greeting: Greeting, version: str) -> Check:
    """How large a picture may be on the way."""
    if greeting.max_packet is not None:
        return Check(
            True,
            f"it takes messages up to {greeting.max_packet:,} bytes; it cuts senders of larger "
            "ones (Mosquitto: max_packet_size)",
        )
    note = f"it tells no limit; results are kept below max_payload, {settings.max_payload:,} bytes"
    if _number(version) >= CUTS and settings.max_payload >= 2_000_000:
        return Check(
            False, f"{note}, but Mosquitto {version} cuts at 2,000,000: set max_packet_size there."
        )
    return Check(True, note)


def _age(version: str) -> Iterator[Check]:
    number = _number(version)
    if "mosquitto" in version.lower() and number < LEAST:
        least = ".".join(map(str, LEAST))
        yield Check(True, f"note: {version} has known holes; {least} or newer has not")


def _number(version: str) -> tuple[int, ...]:
    found = re.search(r"\d+(\.\d+)+", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _persistence(settings: MqttSettings, conf: Path) -> Iterator[Check]:
    """Whether acknowledged messages survive a killed broker: only its configuration knows."""
    local = settings.host == "localhost" or (_is_address(settings.host) and _loops(settings.host))
    if not local or not conf.exists():
        yield Check(
            True,
            "whether it keeps messages when it is killed cannot be asked: config/mosquitto.conf "
            "has the lines that Mosquitto needs",
        )
        return
    found = dict(_lines(conf))
    wrong = [f"{key} {value}" for key, value in KEEPS.items() if found.get(key) != value]
    if wrong:
        lines = ", ".join(wrong)
        yield Check(False, f"killed, it would lose messages. Add to {conf.name}: {lines}.")
    else:
        yield Check(True, "it keeps acknowledged messages when it is killed")
    queued = found.get("max_queued_messages", "1000")
    if queued.isdecimal() and 0 < int(queued) < QUEUED:
        yield Check(
            True,
            f"note: of more than {queued} messages that wait for somebody it drops the rest "
            f"(max_queued_messages; {QUEUED} is as many as vellumd itself holds)",
        )


def _is_address(host: str) -> bool:
    return bool(re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", host))


def _loops(host: str) -> bool:
    return is_near(host) and (host.startswith("127.") or host == "::1")


def _lines(conf: Path) -> Iterator[tuple[str, str]]:
    """Keys and values, included folders too."""
    for line in conf.read_text("utf-8", "replace").splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "include_dir":
            for part in sorted(Path(value.strip()).glob("*.conf")):
                yield from _lines(part)
        elif key and not key.startswith("#"):
            yield key, value.strip()
