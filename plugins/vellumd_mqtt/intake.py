"""Requests that come in: each one durable before its acknowledgement, in order of receipt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from vellumd import EditRequest, ImageRef, Job, TransportContext, errors, new_job_id
from vellumd_mqtt import answers, wire
from vellumd_mqtt.connection import Connection, Message, Outgoing
from vellumd_mqtt.link import Link
from vellumd_mqtt.session import Session
from vellumd_mqtt.topics import COMMANDS, Topics

ROOM_S = 5.0
"""Seconds after which a held request is tried again, if no job's event came before."""
SENDERS = 10_000
"""Jobs whose sender is remembered for progress."""


@dataclass
class Entry:
    """A request that is not acknowledged yet. `connection` is where that has to be done.

    `key` is what the message and its redelivery have in common.
    """

    connection: Connection
    message: Message
    key: str
    done: bool = False

    def is_again(self, message: Message) -> bool:
        """Whether `message` is this one, handed over again on another connection."""
        known = self.message
        same = (known.mid, known.digest) == (message.mid, message.digest)
        return same and message.dup and known.qos > 0 and not self.done


class Intake:
    """Takes messages one after another; commands pass those that wait for room."""

    def __init__(
        self,
        context: TransportContext,
        topics: Topics,
        session: Session,
        command: Callable[[str, Message], Awaitable[None]],
    ) -> None:
        self._context = context
        self._topics = topics
        self._prefixes: tuple[str, ...] = context.settings.reply_prefixes
        self._session = session
        self._command = command
        self._unacknowledged: deque[Entry] = deque()
        self._edits: asyncio.Queue[Entry] = asyncio.Queue()
        self._commands: asyncio.Queue[Entry] = asyncio.Queue()
        self.link: Link
        self.senders: dict[str, wire.Reply] = {}
        self.room = asyncio.Event()

    def receive(self, connection: Connection, message: Message) -> None:
        """A message came. One that still waits here is not taken twice."""
        key = self._session.key(connection, message)
        for entry in self._unacknowledged:
            if entry.connection is not connection and entry.is_again(message):
                entry.connection, entry.message = connection, message
                return
        entry = Entry(connection, message, key)
        self._unacknowledged.append(entry)
        verb, _ = self._topics.request(message.topic)
        if verb in COMMANDS:
            self._commands.put_nowait(entry)
        else:
            self._edits.put_nowait(entry)
            self.link.unwritten = True  # for as long as it waits here

    async def run(self) -> None:
        """Deal with what comes, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work(self._edits, self._edit), name="mqtt edits")
            group.create_task(self._work(self._commands, self._obey), name="mqtt commands")

    async def _work(
        self, queue: asyncio.Queue[Entry], deal: Callable[[Entry], Awaitable[None]]
    ) -> None:
        while True:
            entry = await queue.get()
            try:
                await deal(entry)
            except Exception:
                # Unacknowledged it would come again for ever, and block those behind it.
                self._context.log.exception("a request could not be dealt with")
            entry.done = True
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge all that is done, up to the first that is not."""
        while self._unacknowledged and self._unacknowledged[0].done:
            entry = self._unacknowledged.popleft()
            if entry.message.qos and not entry.connection.lost.done():
                entry.connection.ack(entry.message)

    async def _obey(self, entry: Entry) -> None:
        verb, _ = self._topics.request(entry.message.topic)
        await self._command(verb, entry.message)

    async def _edit(self, entry: Entry) -> None:
        """Accept an edit, or say why not."""
        reply, message = wire.Reply(), entry.message
        try:
            verb, _ = self._topics.request(message.topic)
            if verb != "edit":
                raise errors.BadRequest("Requests go to request/edit, or to a command.")
            order = await asyncio.to_thread(wire.read_order, message, self._topics, self._prefixes)
            reply = order.reply
            job = await self._when_there_is_room(entry, order)
        except wire.Unreadable as unreadable:
            self._refuse(unreadable.reply, unreadable.error)
        except errors.VellumError as error:
            self._refuse(reply, error)
        except Exception:
            self._refuse(reply, errors.Internal("The request could not be read."))
            raise
        else:
            self._remember(job, reply)
            self.link.post(
                Outgoing(self._topics.progress(job.id), answers.progress(job, reply), qos=0)
            )

    async def _when_there_is_room(self, entry: Entry, order: wire.Order) -> Job:
        """Hold the request for as long as it cannot be taken for no fault of its own."""
        held = False
        while True:
            self.room.clear()
            try:
                job = await self._submit(entry, order)
            except errors.VellumError as error:
                if not error.retryable:
                    raise
                held = True
                self._context.report(True, f"requests are held at the broker: {error.message}")
            else:
                if held:
                    self._context.report(True, "requests are taken again")
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(ROOM_S):
                    await self.room.wait()

    async def _submit(self, entry: Entry, order: wire.Order) -> Job:
        images = [await self._stage(picture) for picture in order.pictures]
        mask = {} if order.mask is None else {"mask": await self._stage(order.mask)}
        request = EditRequest.parse({**order.fields, "images": images, **mask})
        reply = order.reply.stored()
        if order.reply.client_job_id:
            key = f"id:{order.reply.client_job_id}"
            return await self._context.jobs.submit(request, key=key, reply=reply)
        message, key, job_id = entry.message, entry.key, new_job_id()
        if not message.qos:
            return await self._context.jobs.submit(request, reply=reply)
        job = await self._context.jobs.submit(request, key=key, job_id=job_id, reply=reply)
        if message.dup or job.id == job_id:
            return job
        # The broker has counted round, or anew: the same words are another request.
        return await self._context.jobs.submit(request, key=f"{key}:{job_id}", reply=reply)

    async def _stage(self, picture: bytes | str) -> ImageRef:
        if sha256 := wire.staged_hash(picture):
            return await self._context.staged(sha256)
        if isinstance(picture, str):
            picture = await asyncio.to_thread(wire.decode_picture, picture)
        return await self._context.stage(picture)

    def _refuse(self, reply: wire.Reply, error: errors.VellumError) -> None:
        """Answer at once: on one connection, this reaches the broker before the ack does."""
        for answer in answers.refusals(self._topics, "edit", reply, error):
            self.link.post(answer)

    def _remember(self, job: Job, reply: wire.Reply) -> None:
        self.senders[job.id] = reply
        if len(self.senders) > SENDERS:
            del self.senders[next(iter(self.senders))]
