"""What a server is told of a job: its pictures, or why there are none."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from vellumd import Delivery, Job, JobStatus, errors
from vellumd_queue import mapping
from vellumd_queue.journal import Entry
from vellumd_queue.link import Link
from vellumd_queue.mapping import Id
from vellumd_queue.plugin import GIVE_UP_S
from vellumd_queue.sender import Body, Debt


def delivery(link: Link, delivery: Delivery) -> Debt:
    """The debt of an ended job.

    It is counted from now, since a job that is given again long after its end is owed too;
    what is owed for too long is given up by the daemon.
    """
    id: Id = delivery.reply["id"]
    job = delivery.job

    async def compose() -> Body:
        try:
            return await asyncio.to_thread(_compose, link, id, job, await _files(link, job))
        except (errors.NotFound, errors.Expired, FileNotFoundError):
            # Removed or damaged: a server that is told nothing gives the job for ever.
            gone = errors.Expired("The result is not kept any more.")
            return _failure(link, id, gone.code, gone.message)

    async def settle(code: str | None) -> None:
        await (delivery.give_up(code) if code else delivery.delivered())

    return Debt(job.id, id, time.time() + GIVE_UP_S, compose, settle)


def refusal(link: Link, entry: Entry) -> Debt:
    """The debt of what never became a job."""
    told = json.loads(entry.refusal or b"{}")

    async def compose() -> Body:
        return _failure(link, told["id"], told["code"], told["error"])

    async def settle(code: str | None) -> None:
        await link.journal.settle(entry)

    return Debt(f"refusal {entry.number}", told["id"], entry.at + GIVE_UP_S, compose, settle)


async def _files(link: Link, job: Job) -> list[Path]:
    if job.status is not JobStatus.DONE:
        return []
    numbers = range(1, len(job.results) + 1)
    return [await link.context.jobs.result(job.id, n) for n in numbers]


def _compose(link: Link, id: Id, job: Job, files: list[Path]) -> Body:
    if files:
        pictures = [file.read_bytes() for file in files]
        seed, type = job.results[0].seed, job.results[0].type
        fields = mapping.done(link.settings.map, id, pictures, seed, job.elapsed_s)
        return _encode(link, fields, type)
    if job.error is None:
        return _failure(link, id, errors.Cancelled.code, "The job was cancelled.")
    return _failure(link, id, job.error.code, job.error.message)


def _failure(link: Link, id: Id, code: str, message: str) -> Body:
    return _encode(link, mapping.failed(link.settings.map, id, code, message), "")


def _encode(link: Link, fields: dict[str, object], type: str) -> Body:
    if link.settings.result == "multipart":
        return mapping.as_form(link.settings.map, fields, type)
    return mapping.as_json(link.settings.map, fields)
