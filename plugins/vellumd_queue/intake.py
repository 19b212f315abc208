"""Makes what was pulled a job of ours, or a refusal."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

from pydantic import JsonValue

from vellumd import EditRequest, ImageRef, errors, new_job_id
from vellumd_queue import answers, mapping
from vellumd_queue.backoff import Backoff
from vellumd_queue.client import ServerDownError
from vellumd_queue.journal import Entry
from vellumd_queue.link import Link
from vellumd_queue.mapping import GarbageError, Id, Order

MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a mistake of ours would raise: a job that makes us stumble must not do so at each start."""


async def take(link: Link, entry: Entry) -> bool:
    """Bring an entry of the journal to its end, however long that takes.

    Whether it became a job that was not known before.
    """
    if entry.job is None:
        link.sender.owe(answers.refusal(link, entry))
        return False
    names = link.settings.map
    try:
        job = await asyncio.to_thread(mapping.find_job, entry.job, names) or {}
        id = mapping.read_id(job, names)
    except GarbageError as garbage:  # it could be read when it came, so `map` was changed
        link.context.log.error(
            "a job that was pulled cannot be read with the new map and waits: the server %s",
            garbage,
        )
        return False
    try:
        return await _accept(link, entry, id, mapping.read_order(job, names))
    except errors.VellumError as error:
        await _refuse(link, entry, id, error)
    except MISTAKES:
        link.context.log.exception("job %.80r cannot be understood", id)
        await _refuse(link, entry, id, errors.Internal("The job cannot be understood."))
    return False


async def _accept(link: Link, entry: Entry, id: Id, order: Order) -> bool:
    """Submit it, and again while the daemon has no room for it."""
    backoff = Backoff(link.pace)
    patient_until = time.monotonic() + link.client.bounds.fetch_s
    while True:
        try:
            new = await _submit(link, id, await _request(link, order))
            break
        except ServerDownError as down:
            if time.monotonic() > patient_until:
                raise errors.BadImage(f"images: the server of a URL {down.text}.") from None
            pause = backoff.pause(down.retry_after)
        except errors.VellumError as error:
            if not error.retryable:
                raise
            pause = backoff.pause(error.retry_after)
        await asyncio.sleep(pause)
    await link.journal.settle(entry)
    link.taken.set()
    if not new:  # its answer is owed once more, and comes as a delivery
        link.context.log.info("job %.80r was given again", id)
    return new


async def _request(link: Link, order: Order) -> EditRequest:
    """Stage the pictures and make the request."""
    images = [await _stage(link, picture) for picture in order.pictures]
    mask = None if order.mask is None else await _stage(link, order.mask)
    if order.ignored:
        names = ", ".join(name[:40] for name in order.ignored[:8])
        link.context.log.debug("fields of job %.80r that are not understood: %s", order.id, names)
    shown = {"client_id": link.name, "meta": {"server": link.name, "id": order.id}}
    return EditRequest.parse({**mapping.request_of(order, images, mask), **shown})


async def _stage(link: Link, picture: str) -> ImageRef:
    url = mapping.picture_url(picture, link.settings.url)
    if url is None:
        data = await asyncio.to_thread(mapping.decode_picture, picture)
        return await link.context.stage(data)
    async with aclosing(link.client.picture(url)) as pieces:
        return await link.context.stage(pieces)


async def _submit(link: Link, id: Id, request: EditRequest) -> bool:
    """Make the job of (server, id, content), or find it; whether it is new.

    The content is the request's digest: pictures count by their bytes, so the same job is
    known again however they travelled, and another picture behind a URL makes another job.
    """
    key = f"{link.name} {json.dumps(id)} {request.digest()}"
    reply: JsonValue = {"server": link.name, "id": id}
    made = new_job_id()
    job = await link.context.jobs.submit(request, key=key, job_id=made, reply=reply)
    return job.id == made


async def _refuse(link: Link, entry: Entry, id: Id, error: errors.VellumError) -> None:
    """Keep what the server is to be told, then tell it."""
    link.context.log.warning("job %.80r is refused: %s", id, error.message)
    told = {"id": id, "code": error.code, "error": error.public()["message"]}
    refused = await link.journal.refuse(entry, json.dumps(told).encode())
    link.sender.owe(answers.refusal(link, refused))
