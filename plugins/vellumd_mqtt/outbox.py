"""Results that go out: each delivery is out until the broker has it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Literal

from vellumd import Delivery, Job, JobStatus, TransportContext, errors, images
from vellumd_mqtt import wire
from vellumd_mqtt.connection import Outgoing, Refusal
from vellumd_mqtt.intake import JSON, answers
from vellumd_mqtt.link import Link
from vellumd_mqtt.topics import Topics

AT_ONCE = 8
"""Deliveries under way: each holds its pictures in memory."""
REFUSED_S = 60.0
"""Seconds before an answer that the broker refused is offered again."""
ROOM = 16_384
"""Bytes left for an answer's other fields when its pictures are made to fit."""

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
            for message in told:
                await self._link.publish(message)
        except Refusal as refusal:
            self._context.log.warning("an answer waits: %s", refusal)
            await delivery.retry(REFUSED_S)
        except Exception:
            self._context.log.exception("an answer could not be made")
            await delivery.retry(REFUSED_S)
        else:
            if problem is None:
                await delivery.delivered()
            else:
                await delivery.give_up(problem.code)
        finally:
            self._places.release()

    async def _answer(
        self, job: Job, reply: wire.Reply
    ) -> tuple[list[Outgoing], errors.VellumError | None]:
        """All messages of one answer; and the error if the pictures are not among them."""
        most = self._link.max_payload
        try:
            numbers = range(1, max(1, len(job.results)) + 1)
            files = [await self._context.jobs.result(job.id, n) for n in numbers]
            if reply.reply == "binary":
                fitted = [await asyncio.to_thread(fit, file, most, job) for file in files]
                return self._binary(job, reply, fitted), None
            return await asyncio.to_thread(self._json, job, reply, files, most), None
        except FileNotFoundError:
            problem: errors.VellumError = errors.Expired("The picture is no longer kept.")
        except errors.VellumError as error:
            problem = error
        # A job's own error is its answer; another one means that a picture did not get through.
        own = job.status is not JobStatus.DONE
        return self._failed(job, reply, problem), None if own else problem

    def _failed(self, job: Job, reply: wire.Reply, error: errors.VellumError) -> list[Outgoing]:
        payload = wire.answer(reply, job_id=job.id, data=job.public(), error=error)
        return answers(self._topics, "edit", reply, payload)

    def _json(self, job: Job, reply: wire.Reply, files: list[Path], most: int) -> list[Outgoing]:
        """The pictures in base64, made smaller only if the answer is too large otherwise."""
        pictures = [read(file, job, n) for n, file in enumerate(files)]
        payload = wire.answer(reply, job_id=job.id, data=wire.job_data(job, pictures, False))
        if len(payload) > most:
            # `image` repeats the first of several.
            shares = len(files) + (len(files) > 1)
            share = (most - ROOM) * 3 // 4 // shares
            pictures = [shrink(file, share, job, n) for n, file in enumerate(files)]
            payload = wire.answer(reply, job_id=job.id, data=wire.job_data(job, pictures, True))
        if len(payload) > most:
            raise errors.ResultTooLarge(f"The answer does not fit into {most} bytes.")
        return answers(self._topics, "edit", reply, payload)

    def _binary(
        self, job: Job, reply: wire.Reply, pictures: list[tuple[bytes, str, bool]]
    ) -> list[Outgoing]:
        """The bytes on topics of their own, and last the answer that says it is over."""
        facts = [("job_id", job.id), ("status", "ok")]
        if reply.client_job_id:
            facts.append(("client_job_id", reply.client_job_id))
        if isinstance(reply.transaction, str):
            facts.append(("transaction", reply.transaction))
        told = []
        for n, (data, type, _) in enumerate(pictures, start=1):
            ways = [self._topics.result(job.id, n), reply.response_topic if n == 1 else ""]
            told += [
                Outgoing(way, data, 1, False, type, reply.correlation, tuple(facts))
                for way in dict.fromkeys(ways)
                if way
            ]
        reencoded = any(changed for _, _, changed in pictures)
        shown = wire.job_data(job, [], reencoded)
        shown["result_topic"] = self._topics.result(job.id)
        payload = wire.answer(reply, job_id=job.id, data=shown)
        topic = self._topics.response("edit", reply.reply_to)
        return [*told, Outgoing(topic, payload, 1, False, JSON, reply.correlation)]


def read(file: Path, job: Job, n: int) -> tuple[bytes, str]:
    """A result as it is."""
    return file.read_bytes(), job.results[n].type


def shrink(file: Path, most: int, job: Job, n: int) -> tuple[bytes, str]:
    """A result in at most `most` bytes; raises `ResultTooLarge`."""
    if most <= 0:
        raise errors.ResultTooLarge("The answer leaves no room for a picture.")
    return images.derive(file, _FORMATS.get(job.results[n].type, "jpeg"), max_bytes=most)


def fit(file: Path, most: int, job: Job) -> tuple[bytes, str, bool]:
    """A result as it is, or in at most `most` bytes; and whether it was re-encoded."""
    result = next(one for one in job.results if one.file == file.name)
    if result.bytes <= most:
        return file.read_bytes(), result.type, False
    data, type = images.derive(file, _FORMATS.get(result.type, "jpeg"), max_bytes=most)
    return data, type, True
