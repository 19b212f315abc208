"""Results that go out: each delivery is out until the broker has it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from vellumd import Delivery, Job, JobStatus, TransportContext, errors, images
from vellumd_mqtt import answers, wire
from vellumd_mqtt.connection import Outgoing, Refusal
from vellumd_mqtt.link import Link
from vellumd_mqtt.topics import Topics

AT_ONCE = 8
"""Deliveries under way: each holds its pictures in memory."""
REFUSED_S = 60.0
"""Seconds before an answer that the broker refused is offered again."""
UNHEARD_S, GATHER_S = 3.0, 30.0
"""Seconds before an answer is offered again that nobody has subscribed to, and for how long after
connecting that is done: of a broker that keeps no sessions, others may return after us."""
SYNTAX = 64
"""Bytes beside a picture's own: its key, quotes, padding."""

_FORMATS: dict[str, Literal["jpeg", "webp"]] = {"image/webp": "webp"}


class Outbox:
    """Sends what the daemon owes the senders of this door."""

    def __init__(self, context: TransportContext, topics: Topics, link: Link) -> None:
        self._context = context
        self._topics = topics
        self._link = link
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Deliver for ever. What is not acknowledged when this ends is owed still."""
        async with (
            asyncio.TaskGroup() as group,
            aclosing(self._context.deliveries()) as deliveries,
        ):
            async for delivery in deliveries:
                await self._places.acquire()
                group.create_task(self._deliver(delivery), name=f"deliver {delivery.job.id}")

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._link.connected()  # which tells how much may be sent
            reply = wire.Reply.restored(delivery.reply)
            told, problem = await self._answer(delivery.job, reply)
            heard = [await self._link.publish(message) for message in told]
            self._link.unwritten = True  # by a broker whose reader takes its time
        except Refusal as refusal:
            self._context.log.warning("an answer waits: %s", refusal)
            await delivery.retry(REFUSED_S)
        except Exception:
            self._context.log.exception("an answer could not be made")
            await delivery.retry(REFUSED_S)
        else:
            if not any(heard) and self._is_gathering():
                await delivery.retry(UNHEARD_S)
            elif problem is None:
                await delivery.delivered()
            else:
                await delivery.give_up(problem.code)
        finally:
            self._places.release()

    def _is_gathering(self) -> bool:
        """Whether the broker's other clients may still be on their way back."""
        return asyncio.get_running_loop().time() - self._link.opened < GATHER_S

    async def _answer(
        self, job: Job, reply: wire.Reply
    ) -> tuple[list[Outgoing], errors.VellumError | None]:
        """All messages of one answer; and the error if the pictures are not among them."""
        numbers = range(1, max(1, len(job.results)) + 1)
        links = [self._context.link(job.id, n) for n in numbers]
        make = self._binary if reply.reply == "binary" else self._json
        try:
            files = [await self._context.jobs.result(job.id, n) for n in numbers]
            try:
                return await asyncio.to_thread(make, job, reply, files, links), None
            except errors.ResultTooLarge:
                if links[0] is None:
                    raise
                return self._by_link(job, reply, links), None
        except FileNotFoundError:
            problem: errors.VellumError = errors.Expired("The picture is no longer kept.")
        except errors.VellumError as error:
            problem = error
        # A job's own error is its answer; another one means that a picture did not get through.
        own = job.status is not JobStatus.DONE
        return self._failed(job, reply, problem), None if own else problem

    def _failed(self, job: Job, reply: wire.Reply, error: errors.VellumError) -> list[Outgoing]:
        try:
            payload = self._fitting(reply, job_id=job.id, data=job.public(), error=error)
        except errors.ResultTooLarge:
            payload = answers.answer(reply, job_id=job.id, error=error)
        return answers.everywhere(self._topics, "edit", reply, payload)

    def _by_link(self, job: Job, reply: wire.Reply, links: answers.Links) -> list[Outgoing]:
        """Where the pictures are, since they themselves do not fit."""
        data = answers.job_data(job, links)
        payload = self._fitting(reply, job_id=job.id, data=data)
        return answers.everywhere(self._topics, "edit", reply, payload)

    def _json(
        self, job: Job, reply: wire.Reply, files: list[Path], links: answers.Links
    ) -> list[Outgoing]:
        """The pictures in base64, made smaller only if the answer is too large otherwise."""

        def payload(pictures: list[answers.Picture], reencoded: bool) -> bytes:
            data = answers.job_data(job, links, pictures, reencoded=reencoded)
            return self._fitting(reply, job_id=job.id, data=data)

        # `image` repeats the first of several.
        shares = len(files) + (len(files) > 1)
        room = self._link.max_payload - len(payload([], True)) - SYNTAX * shares
        told = payload(*fit(files, room * 3 // 4 // shares, job, links))
        return answers.everywhere(self._topics, "edit", reply, told)

    def _fitting(self, reply: wire.Reply, **what: Any) -> bytes:
        """An answer; raises `ResultTooLarge` where the broker would cut the sender."""
        payload = answers.answer(reply, **what)
        if len(payload) > self._link.max_payload:
            raise errors.ResultTooLarge(
                f"The answer does not fit into {self._link.max_payload} bytes."
            )
        return payload

    def _binary(
        self, job: Job, reply: wire.Reply, files: list[Path], links: answers.Links
    ) -> list[Outgoing]:
        """The bytes on topics of their own, and last the answer that says it is over."""
        pictures, reencoded = fit(files, self._link.max_payload, job, links)
        facts = [("job_id", job.id), ("status", "ok")]
        if reply.client_job_id:
            facts.append(("client_job_id", reply.client_job_id))
        if isinstance(reply.transaction, str):
            facts.append(("transaction", reply.transaction))
        told = []
        for n, (data, type) in enumerate(pictures, start=1):
            ways = [self._topics.result(job.id, n), reply.response_topic if n == 1 else ""]
            told += [
                Outgoing(way, data, 1, False, type, reply.correlation, tuple(facts))
                for way in dict.fromkeys(ways)
                if way
            ]
        shown = answers.job_data(job, links, reencoded=reencoded)
        shown["result_topic"] = self._topics.result(job.id)
        payload = self._fitting(reply, job_id=job.id, data=shown)
        topic = self._topics.response("edit", reply.reply_to)
        return [*told, Outgoing(topic, payload, 1, False, answers.JSON, reply.correlation)]


def fit(
    files: list[Path], most: int, job: Job, links: answers.Links
) -> tuple[list[answers.Picture], bool]:
    """Results in at most `most` bytes each; and whether one was re-encoded for it.

    Where a link opens the whole picture, it keeps its pixels. Raises `ResultTooLarge`.
    """
    pictures, reencoded = [], False
    for file, result, link in zip(files, job.results, links, strict=True):
        if result.bytes <= most:
            pictures.append((file.read_bytes(), result.type))
        elif most > 0:
            format = _FORMATS.get(result.type, "jpeg")
            pictures.append(images.derive(file, format, max_bytes=most, resize=link is None))
            reencoded = True
        else:
            raise errors.ResultTooLarge("The answer leaves no room for a picture.")
    return pictures, reencoded
