"""OpenAI's door: `POST /v1/images/edits` as their clients send it, and the list of models."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from aiohttp import web

from vellumd import EditRequest, Job, JobEvent, TransportContext, errors, images, models
from vellumd_http import openai_wire, results, wire
from vellumd_http.intake import Intake
from vellumd_http.openai_wire import Asked
from vellumd_http.streams import Streams, closing
from vellumd_http.unanswered import Waiting

ANSWERED_BY = web.RequestKey("answered_by", Job)
"""The job that an answer is about, for its headers."""


class OpenAI:
    """Edits and models in OpenAI's dialect."""

    def __init__(self, context: TransportContext, intake: Intake, streams: Streams) -> None:
        self._context = context
        self._jobs = context.jobs
        self._intake = intake
        self._streams = streams
        self._waiting = Waiting(context, context.dir / "unanswered_openai")
        self._since = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        """The routes of this door."""
        return [
            web.post("/v1/images/edits", self.edit),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{id:.+}", self.model),
        ]

    async def models(self, request: web.Request) -> web.Response:
        """The one model that runs here."""
        data = [openai_wire.model(self._context.info()["model"], self._since)]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        """That model by its name."""
        name = self._context.info()["model"]
        if request.match_info["id"] != name:
            raise errors.NotFound(f"The model here is {name!r}; edits take any name.")
        return web.json_response(openai_wire.model(name, self._since))

    async def edit(self, request: web.Request) -> web.StreamResponse:
        """Edit and answer with the picture, or tell how it comes about and then it."""
        fields = await self._intake.edit(request, openai_wire.FIELDS)
        usable = [preset.name for preset in self._context.presets.list() if preset.usable]
        asked = openai_wire.asked(fields, usable)
        if asked.url and self._context.info()["public_url"] is None:
            raise errors.BadRequest(
                "response_format: url needs daemon.public_url in the configuration; leave the "
                "field out to get b64_json."
            )
        with self._streams.slot() if asked.stream else nullcontext():
            async with self._job(request, asked.edit) as job:
                request[ANSWERED_BY] = job
                if asked.stream:
                    return await self._stream(request, job, asked)
                job = await self._waiting.ended(request, job)
                return await self._answer(request, job, asked)

    @asynccontextmanager
    async def _job(self, request: web.Request, edit: EditRequest) -> AsyncIterator[Job]:
        """The job of a key where one is sent; else of an equal request that had no answer.

        Two equal requests may want two pictures. So only one that says that it is a
        repetition is taken for one while the first one's caller seems to be there.
        """
        if key := wire.idempotency_key(request.headers.get("Idempotency-Key", "")):
            yield await self._jobs.submit(edit, key=key)
            return
        again = openai_wire.retried(request.headers.get(openai_wire.RETRIED, ""))
        async with self._waiting.job(request, edit, again=again) as job:
            yield job

    async def _answer(self, request: web.Request, job: Job, asked: Asked) -> web.StreamResponse:
        numbers = range(1, max(1, len(job.results)) + 1)
        paths = [await self._jobs.result(job.id, n) for n in numbers]
        links = [self._context.link(job.id, n) or "" for n in numbers]
        contents = links if asked.url else [path.read_bytes for path in paths]
        try:
            body = await asyncio.to_thread(openai_wire.answer, job, contents, asked.warnings)
        except FileNotFoundError:
            raise errors.Expired("The picture is no longer kept.") from None
        return await results.send_data(request, body, "application/json")

    async def _stream(self, request: web.Request, job: Job, asked: Asked) -> web.StreamResponse:
        """Partial pictures of the first result while it is made, then all results."""
        picked = openai_wire.spread(job.request.steps, asked.partials) if job.request else []
        events = self._jobs.events(
            job.id,
            0,
            previews=bool(picked),
            keep=lambda event: event.type == "preview" and event.data["step"] in picked,
        )
        async with closing(events):
            await anext(events)  # `queued`: from here on no step is missed
            return await self._streams.send(request, self._told(events, job, asked, picked), bytes)

    async def _told(
        self, events: AsyncGenerator[JobEvent, None], job: Job, asked: Asked, picked: list[int]
    ) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for event in events:
                if event.type == "preview" and event.data["step"] in picked:
                    picked.remove(event.data["step"])
                    yield await asyncio.to_thread(_partial, job, sent, event)
                    sent += 1
                elif event.type in models.ENDS:
                    break
            job = await self._jobs.get(job.id)
            for number in range(1, max(1, len(job.results)) + 1):
                path = await self._jobs.result(job.id, number)
                picture = await asyncio.to_thread(path.read_bytes)
                yield openai_wire.completed(job, job.results[number - 1], picture, asked.warnings)
        except errors.VellumError as error:
            yield openai_wire.failed(error)
        except FileNotFoundError:
            yield openai_wire.failed(errors.Expired("The picture is no longer kept."))


def _partial(job: Job, index: int, event: JobEvent) -> bytes:
    """A preview in the format that the finished picture will have."""
    wanted = job.request.output.format if job.request else "jpeg"
    format: wire.Format = "jpeg" if wanted == "same" else wanted
    picture, _ = images.derive(base64.b64decode(event.data["jpeg"]), format)
    return openai_wire.partial(job, index, int(event.at.timestamp()), picture, format)


def add_headers(request: web.Request, answer: web.StreamResponse) -> None:
    """What their clients log: an id for each answer, the job's where there is one."""
    if not openai_wire.is_path(request.path):
        return
    job = request.get(ANSWERED_BY)
    answer.headers["x-request-id"] = job.id if job else f"req_{uuid.uuid4().hex}"
    if job:
        answer.headers["x-vellumd-model"] = job.model
