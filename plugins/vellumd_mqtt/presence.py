"""What the door tells unasked: what this daemon is, its queue, the steps of its jobs."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress
from typing import Any

from vellumd import JobEvent, TransportContext, errors, images
from vellumd_mqtt import answers, discovery
from vellumd_mqtt.commands import status
from vellumd_mqtt.connection import RECEIVE_MAX, Outgoing
from vellumd_mqtt.intake import Intake
from vellumd_mqtt.link import Link
from vellumd_mqtt.topics import Topics

PACE_S = 0.5
"""Least seconds between two messages about the queue."""
FACTS = (
    "version",
    "model",
    "demo",
    "note",
    "presets",
    "default_preset",
    "tiers",
    "limits",
    "public_url",
)
"""What `info` shows of the daemon's own."""


class Presence:
    """Keeps the retained topics true, and passes progress on."""

    def __init__(
        self, context: TransportContext, topics: Topics, link: Link, intake: Intake
    ) -> None:
        self._context = context
        self._topics = topics
        self._link = link
        self._intake = intake
        self._discovery: bool = context.settings.discovery
        self._changed = asyncio.Event()
        self._facts: dict[str, Any] = {}

    def introduce(self) -> None:
        """Tell a broker all that it should keep; it may be a new one."""
        info = self._context.info()
        self._facts = {name: info[name] for name in FACTS}
        most = {"max_payload": min(self._link.max_payload, RECEIVE_MAX)}
        self._keep(self._topics.info, self._facts | most)
        self._keep(self._topics.queue, status(self._context))
        if self._discovery:
            for topic, config in discovery.configs(self._topics, info):
                self._keep(topic, config)

    async def run(self) -> None:
        """Tell what happens, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="mqtt events")
            group.create_task(self._tell_changes(), name="mqtt queue")

    async def _follow(self) -> None:
        async with aclosing(self._context.jobs.events()) as events:
            async for event in events:
                if event.type != "step":
                    self._intake.room.set()
                    self._changed.set()
                await self._pass_on(event)

    async def _pass_on(self, event: JobEvent) -> None:
        """One event, to the sender of its job."""
        sender = self._intake.senders.get(event.job_id)
        with suppress(errors.VellumError):
            if event.type == "done" and self._discovery:
                await self._show_last(event.job_id)
            if sender is not None and event.type not in ("queued", "preview"):
                job = await self._context.jobs.get(event.job_id)
                if job.status.terminal:
                    self._intake.senders.pop(event.job_id, None)
                self._link.post(
                    Outgoing(self._topics.progress(job.id), answers.progress(job, sender), qos=0)
                )

    async def _show_last(self, job_id: str) -> None:
        """The newest result, for Home Assistant's image."""
        file = await self._context.jobs.result(job_id)
        most = self._link.max_payload
        with suppress(OSError):
            data, type = await asyncio.to_thread(images.derive, file, "jpeg", 90, most)
            self._link.post(Outgoing(self._topics.last, data, retain=True, content_type=type))

    async def _tell_changes(self) -> None:
        """The queue when it has changed, not more often than it can be read; presets likewise.

        Pauses, the engine's state and presets come without a job's event: looked at now and
        then. What the broker may not have written is written with what is retained next, so
        the queue is told again for it.
        """
        told: dict[str, Any] = {}
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(4 * PACE_S):
                    await self._changed.wait()
            self._changed.clear()
            if (now := status(self._context)) != told or self._link.unwritten:
                self._link.unwritten = False
                self._keep(self._topics.queue, now)
                told = now
            if self._facts and self._facts["presets"] != self._context.info()["presets"]:
                self.introduce()
            await asyncio.sleep(PACE_S)

    def _keep(self, topic: str, value: dict[str, Any]) -> None:
        payload = json.dumps(value, separators=(",", ":")).encode()
        self._link.post(Outgoing(topic, payload, retain=True, content_type=answers.JSON))
