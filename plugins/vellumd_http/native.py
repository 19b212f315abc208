"""The native door: jobs as resources under /v1."""

from __future__ import annotations

import asyncio
import mimetypes
from typing import Any

from aiohttp import web
from pydantic import Field, ValidationError

from vellumd import EditRequest, Job, JobFilter, JobStatus, TransportContext, errors, models
from vellumd_http import results, wire
from vellumd_http.body import JSON_MAX, Bodies
from vellumd_http.intake import Intake
from vellumd_http.links import Links

APPLIED = web.RequestKey("applied", str)
"""The preference that an answer honours, for its `Preference-Applied`."""

JOB = "/v1/jobs/{job:[^/]+}"
SHOWN = (
    "version", "model", "demo", "note", "knows", "samples", "presets", "default_preset", "tiers",
    "loras", "limits", "engine", "queue",
)  # fmt: skip
"""What `/v1/capabilities` shows of the daemon's info: nothing with an address in it."""


class PriorityPatch(models.Frozen):
    """The one thing of a job that can be changed."""

    priority: int = Field(ge=-100, le=100, description="Higher runs first.")


class Native:
    """Jobs, their pictures, and what this daemon can do."""

    def __init__(
        self, context: TransportContext, intake: Intake, bodies: Bodies, links: Links
    ) -> None:
        self._context = context
        self._jobs = context.jobs
        self._intake = intake
        self._bodies = bodies
        self._links = links

    def routes(self) -> list[web.RouteDef]:
        """The routes of this door."""
        number = r"{n:\d{1,4}}"
        return [
            web.post("/v1/jobs", self.submit),
            web.get("/v1/jobs", self.list),
            web.get(JOB, self.show),
            web.delete(JOB, self.delete),
            web.patch(JOB, self.patch),
            web.post(JOB + "/cancel", self.cancel),
            web.post(JOB + "/retry", self.retry),
            web.get(JOB + "/result", self.result),
            web.get(JOB + "/result/" + number, self.result),
            web.get(JOB + "/inputs/" + number, self.input),
            web.get(JOB + "/mask", self.mask),
            web.post("/v1/inputs", self.upload),
            web.get("/v1/samples/{name}", self.sample),
            web.get("/v1/capabilities", self.capabilities),
        ]

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Accept an edit: 202 and the job, or what `Prefer: wait` brings."""
        key = wire.idempotency_key(request.headers.get("Idempotency-Key", ""))
        edit = EditRequest.parse(await self._intake.edit(request))
        job = await self._waited(request, await self._jobs.submit(edit, key=key))
        if job.status.terminal and wire.wants_picture(request.headers.get("Accept", "")):
            return await results.send_result(self._context, request, job.id, 1)
        return self._accepted(job, 200 if job.status.terminal else 202)

    async def list(self, request: web.Request) -> web.Response:
        """A page of jobs, newest first."""
        query = request.query
        wire.check_query(query, {"status", "source", "batch", "client_id", "cursor"})
        wanted = JobFilter(
            status=_status(query.get("status")),
            source=query.get("source"),
            batch=query.get("batch"),
            client_id=query.get("client_id"),
        )
        page = await self._jobs.list(wanted, query.get("cursor"))
        jobs = [self._links.public(job) for job in page.jobs]
        return web.json_response({"jobs": jobs, "next": page.next})

    async def show(self, request: web.Request) -> web.Response:
        """The job as it is, or as it is when it has ended or the wait is over."""
        job = await self._jobs.get(request.match_info["job"])
        return self._show(await self._waited(request, job))

    async def delete(self, request: web.Request) -> web.Response:
        """Forget an ended job."""
        await self._jobs.delete(request.match_info["job"])
        return web.Response(status=204)

    async def patch(self, request: web.Request) -> web.Response:
        """Change a queued job's priority."""
        fields = await self._bodies.json(request)
        try:
            wanted = PriorityPatch.model_validate(fields)
        except ValidationError as error:
            raise models.bad_request(PriorityPatch, error) from None
        return self._show(await self._jobs.set_priority(request.match_info["job"], wanted.priority))

    async def cancel(self, request: web.Request) -> web.Response:
        """End a job; an ended one stays as it is."""
        return self._show(await self._jobs.cancel(request.match_info["job"]))

    async def retry(self, request: web.Request) -> web.Response:
        """A new job with the same request."""
        return self._accepted(await self._jobs.retry(request.match_info["job"]), 202)

    async def result(self, request: web.Request) -> web.StreamResponse:
        """A finished picture, waited for where `Prefer` says so; raises `Timeout` after that."""
        job_id, n = request.match_info["job"], _number(request)
        if wire.prefer_wait(request.headers.getall("Prefer", [])) is not None:
            job = await self._waited(request, await self._jobs.get(job_id))
            if not job.status.terminal:
                raise errors.Timeout("The job has not ended yet.", retry_after=1)
        return await results.send_result(self._context, request, job_id, n)

    async def input(self, request: web.Request) -> web.StreamResponse:
        """A reference picture as it came."""
        return await results.send_input(
            self._context, request, request.match_info["job"], _number(request)
        )

    async def mask(self, request: web.Request) -> web.StreamResponse:
        """The mask as it came."""
        return await results.send_mask(self._context, request, request.match_info["job"])

    async def sample(self, request: web.Request) -> web.StreamResponse:
        """A picture that the model's card offers to try."""
        path = self._context.sample(request.match_info["name"])
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError:
            raise errors.NotFound("The model's folder lacks this sample.") from None
        type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return await results.send_data(request, data, type, {"Cache-Control": "no-cache"})

    async def upload(self, request: web.Request) -> web.Response:
        """Keep a picture for an hour, to be named by its hash."""
        picture = await self._intake.upload(request)
        return web.json_response(
            {"sha256": picture.sha256, "width": picture.width, "height": picture.height},
            status=201,
        )

    async def capabilities(self, request: web.Request) -> web.Response:
        """Model, presets, tiers, limits and state."""
        info = self._context.info()
        shown: dict[str, Any] = {name: info[name] for name in SHOWN}
        shown["doors"] = wire.doors(info)
        sizes = {"json_bytes": JSON_MAX, "body_bytes": self._bodies.max_bytes}
        return web.json_response({**shown, "limits": {**shown["limits"], **sizes}})

    async def _waited(self, request: web.Request, job: Job) -> Job:
        seconds = wire.prefer_wait(request.headers.getall("Prefer", []))
        if seconds is None:
            return job
        request[APPLIED] = f"wait={seconds}"
        return await self._jobs.wait(job.id, seconds)

    def _show(self, job: Job) -> web.Response:
        return web.json_response(self._links.public(job))

    def _accepted(self, job: Job, status: int) -> web.Response:
        location = {"Location": f"/v1/jobs/{job.id}"}
        return web.json_response(self._links.public(job), status=status, headers=location)


def _number(request: web.Request) -> int:
    """Which picture, from 1; raises `NotFound` for 0."""
    n = int(request.match_info.get("n", "1"))
    if n < 1:
        raise errors.NotFound("Pictures are numbered from 1.")
    return n


def _status(text: str | None) -> JobStatus | None:
    if text is None:
        return None
    try:
        return JobStatus(text)
    except ValueError:
        raise errors.BadRequest(f"status: must be one of {', '.join(JobStatus)}.") from None
