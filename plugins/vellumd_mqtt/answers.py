"""Translation of what goes out: jobs and errors to answers. Pure functions, no broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from vellumd import Job, errors, models
from vellumd_mqtt.connection import Outgoing
from vellumd_mqtt.topics import Topics
from vellumd_mqtt.wire import Reply

JSON = "application/json"
Picture = tuple[bytes, str]
"""A picture's bytes and media type."""
Links = Sequence[str | None]
"""URLs of a job's results, as far as somebody serves them."""


def answer(
    reply: Reply,
    *,
    job_id: str | None = None,
    data: dict[str, Any] | None = None,
    error: errors.VellumError | None = None,
) -> bytes:
    """The JSON of an answer, the same for edits and commands."""
    echoed = {"client_job_id": reply.client_job_id} if reply.client_job_id else {}
    shown = {
        "transaction": reply.transaction,
        "status": "ok" if error is None else "error",
        "job_id": job_id,
        **echoed,
        "data": data,
        "error": None if error is None else error.public(),
    }
    return json.dumps(shown, separators=(",", ":")).encode()


def job_data(
    job: Job, links: Links, pictures: Sequence[Picture] = (), *, reencoded: bool = False
) -> dict[str, Any]:
    """`data` of an answer: the job, its pictures in base64 (`image` is the first).

    Results that can be opened by a link have their `url`; beside `image` stands the first.
    """
    shown = job.public()
    for result, link in zip(shown["results"], links, strict=False):
        if link is not None:
            result["url"] = link
            shown.setdefault("url", link)
    if reencoded:
        shown["warnings"].append(models.notice("reencoded").model_dump())
    encoded = [base64.b64encode(data).decode("ascii") for data, _ in pictures]
    first = {"image": encoded[0], "image_type": pictures[0][1]} if encoded else {}
    return {**first, **({"images": encoded} if len(encoded) > 1 else {}), **shown}


def progress(job: Job, reply: Reply) -> bytes:
    """How far a job is, in a few bytes."""
    shown = {
        "job_id": job.id,
        **({"client_job_id": reply.client_job_id} if reply.client_job_id else {}),
        "transaction": reply.transaction,
        "status": job.status,
        "position": job.position,
        "eta_s": job.eta_s,
        "progress": None if job.progress is None else job.progress.model_dump(mode="json"),
    }
    return json.dumps(shown, separators=(",", ":")).encode()


def everywhere(topics: Topics, verb: str, reply: Reply, payload: bytes) -> list[Outgoing]:
    """An answer, for each place where it goes."""
    ways = dict.fromkeys([topics.response(verb, reply.reply_to), reply.response_topic])
    return [
        Outgoing(way, payload, content_type=JSON, correlation=reply.correlation)
        for way in ways
        if way
    ]


def refusals(topics: Topics, verb: str, reply: Reply, error: errors.VellumError) -> list[Outgoing]:
    """The answers that tell an error, one for each place where answers go."""
    return everywhere(topics, verb, reply, answer(reply, error=error))
