"""What can be asked besides edits: cancel, status, pause, resume, unload."""

from __future__ import annotations

import asyncio
from typing import Any

from vellumd import Job, TransportContext, errors
from vellumd_mqtt import answers, wire
from vellumd_mqtt.connection import Message
from vellumd_mqtt.link import Link
from vellumd_mqtt.topics import Topics

OFF = ("off", "false", "0")
"""What `request/pause` takes as the contrary: a switch has one topic."""


class Commands:
    """Carries commands out and answers them."""

    def __init__(self, context: TransportContext, topics: Topics) -> None:
        self._context = context
        self._topics = topics
        self.link: Link

    async def obey(self, verb: str, message: Message) -> None:
        """Do it, and say how it went."""
        reply = wire.Reply()
        try:
            fields, reply = await asyncio.to_thread(
                wire.read_command, message, self._topics, self._context.settings.reply_prefixes
            )
            job_id, data = await self._do(verb, fields)
        except wire.Unreadable as unreadable:
            told = answers.refusals(self._topics, verb, unreadable.reply, unreadable.error)
        except errors.VellumError as error:
            told = answers.refusals(self._topics, verb, reply, error)
        else:
            payload = answers.answer(reply, job_id=job_id, data=data)
            told = answers.everywhere(self._topics, verb, reply, payload)
        for answer in told:
            self.link.post(answer)

    async def _do(self, verb: str, fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        wanted = str(fields.pop("job_id", None) or "")
        if verb in ("cancel", "status") and fields:
            raise errors.BadRequest(f"{next(iter(fields))[:80]}: {verb} takes a job_id alone.")
        if verb == "cancel":
            job = await self._context.jobs.cancel((await self._job(wanted)).id)
            return job.id, job.public()
        if verb == "status" and wanted:
            job = await self._job(wanted)
            return job.id, job.public()
        if verb != "status":
            await self._control(verb, wanted.lower())
        return None, status(self._context)

    async def _job(self, wanted: str) -> Job:
        """The job of this id, be it the daemon's or the sender's own."""
        if not wanted:
            raise errors.BadRequest("job_id: it is missing.")
        try:
            return await self._context.jobs.find(f"id:{wanted}")
        except errors.NotFound:
            return await self._context.jobs.get(wanted)

    async def _control(self, verb: str, word: str) -> None:
        control = self._context.control
        if verb == "unload":
            await control.unload()
        elif verb == "resume" or word in OFF:
            await control.resume()
        else:
            await control.pause()


def status(context: TransportContext) -> dict[str, Any]:
    """Queue and engine in a few words; `paused` is what a switch shows."""
    info = context.info()
    queue = info["queue"]
    return {
        **queue,
        "paused": queue.get("held") == "paused",
        "engine": {name: info["engine"][name] for name in ("state", "ready", "reason")},
    }
