"""The MQTT door itself: its parts, and their life."""

from __future__ import annotations

import asyncio

from vellumd import TransportContext
from vellumd_mqtt.commands import Commands
from vellumd_mqtt.connection import Connection, Greeting
from vellumd_mqtt.intake import Intake
from vellumd_mqtt.link import Link
from vellumd_mqtt.outbox import Outbox
from vellumd_mqtt.presence import Presence
from vellumd_mqtt.session import Session
from vellumd_mqtt.topics import Topics


class MqttTransport:
    """The door as the daemon runs it."""

    def __init__(self, context: TransportContext) -> None:
        topics = Topics(context.settings.instance)
        self._session = Session(context.dir / "session")
        commands = Commands(context, topics)
        self._intake = Intake(context, topics, self._session, commands.obey)
        self._link = Link(
            context, topics, self._intake.receive, self._opened, self._session.subscribed
        )
        self._intake.link = commands.link = self._link
        self._outbox = Outbox(context, topics, self._link)
        self._presence = Presence(context, topics, self._link, self._intake)

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._link.check_files()
        async with asyncio.TaskGroup() as group:
            for part in (self._link, self._intake, self._outbox, self._presence):
                group.create_task(part.run(), name=f"mqtt {type(part).__name__.lower()}")

    async def _opened(self, connection: Connection, greeting: Greeting) -> None:
        if not greeting.session_present:
            self._session.renew()
        self._presence.introduce()
