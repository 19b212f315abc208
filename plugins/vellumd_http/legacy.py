"""The predecessor's door: `POST /generate` answers with the finished picture."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from vellumd import EditRequest, Job, TransportContext, errors, models, new_job_id
from vellumd_http import results, wire
from vellumd_http.intake import Intake

ATTACH = timedelta(minutes=10)
"""How long after a job's end its unreceived answer waits for the same body again."""
_DIGEST = re.compile("[0-9a-f]{64}")
WAIT_S = 15
"""Seconds between two looks whether the caller is still there."""


class Unanswered:
    """Jobs whose answer nobody has received yet, by digest of the request.

    One small file each, so that a restart does not forget them. Only the newest
    `MOST` are kept.
    """

    MOST = 1000

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        # What others put there is no file of ours, such as a file manager's notes.
        files = [file for file in folder.iterdir() if _DIGEST.fullmatch(file.name)]
        files.sort(key=lambda file: file.stat().st_mtime)
        found = ((file.name, file.read_text("ascii", "replace")) for file in files)
        # A power cut can leave a file without its text.
        self._jobs = {digest: job_id for digest, job_id in found if job_id}

    def job_of(self, digest: str) -> str | None:
        """The job that was made for this request and not yet received."""
        return self._jobs.get(digest)

    def expect(self, digest: str, job_id: str) -> None:
        """The request of `digest` is answered by `job_id` from now on.

        Raises `StorageFull` and the like where that cannot be written down.
        """
        self._jobs.pop(digest, None)
        self._jobs[digest] = job_id
        try:
            (self._folder / digest).write_text(job_id, encoding="ascii")
        except OSError as error:
            self.received(digest, job_id)
            raise errors.disk_error(error) from error
        if len(self._jobs) > self.MOST:
            oldest = next(iter(self._jobs))
            self.received(oldest, self._jobs[oldest])

    def received(self, digest: str, job_id: str) -> None:
        """The answer has left: the same request is a new job."""
        if self._jobs.get(digest) == job_id:
            del self._jobs[digest]
            (self._folder / digest).unlink(missing_ok=True)


class Legacy:
    """`/generate` and `/health`."""

    def __init__(self, context: TransportContext, intake: Intake) -> None:
        self._context = context
        self._intake = intake
        self._unanswered = Unanswered(context.dir / "unanswered")

    def routes(self) -> list[web.RouteDef]:
        """The routes of this door."""
        return [web.post("/generate", self.generate), web.get("/health", self.health)]

    async def health(self, request: web.Request) -> web.Response:
        """How the daemon is, in the predecessor's words."""
        info = self._context.info()
        engine = info["engine"]
        status = "ok" if engine["ready"] else engine["state"]
        return web.json_response(
            {"status": status, "model": info["model"], "model_loaded": engine["loaded"]}
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Edit and wait; the job goes on if the caller does not."""
        fields = await self._intake.edit(request)
        edit, warnings = wire.legacy_request(fields, self._context.settings.legacy_size)
        digest = edit.digest()
        job = await self._submit(edit, digest)
        try:
            job = await self._ended(request, job)
            answer = await self._answer(request, job, warnings)
        except errors.VellumError:
            self._unanswered.received(digest, job.id)
            raise
        self._unanswered.received(digest, job.id)
        return answer

    async def _submit(self, edit: EditRequest, digest: str) -> Job:
        """The job of an unreceived answer to this request, or a new one.

        The id is written down before the job is made and the job is made under it, so
        neither a crash nor a second caller in between makes two.
        """
        known = self._unanswered.job_of(digest)
        if known is None:
            return await self._submit_new(edit, digest)
        job = await self._context.jobs.submit(edit, job_id=known)
        if job.ended is None or datetime.now(UTC) - job.ended < ATTACH:
            return job
        return await self._submit_new(edit, digest)

    async def _submit_new(self, edit: EditRequest, digest: str) -> Job:
        job_id = new_job_id()
        self._unanswered.expect(digest, job_id)
        try:
            return await self._context.jobs.submit(edit, job_id=job_id)
        except errors.VellumError:
            self._unanswered.received(digest, job_id)
            raise

    async def _ended(self, request: web.Request, job: Job) -> Job:
        while not job.status.terminal:
            if request.transport is None:
                raise ConnectionResetError("the caller left; its answer waits")
            job = await self._context.jobs.wait(job.id, WAIT_S)
        return job

    async def _answer(
        self, request: web.Request, job: Job, warnings: list[models.Notice]
    ) -> web.StreamResponse:
        accept = request.headers.get("Accept", "")
        if wire.wants_picture(accept) or "text/html" in wire.media_types(accept):
            return await results.send_result(self._context, request, job.id, 1, inline=True)
        numbers = range(1, max(1, len(job.results)) + 1)
        paths = [await self._context.jobs.result(job.id, n) for n in numbers]
        body = await asyncio.to_thread(_encode, job, paths, warnings)
        return await results.send_data(request, body, "application/json")


def _encode(job: Job, paths: list[Path], warnings: list[models.Notice]) -> bytes:
    try:
        pictures = [path.read_bytes() for path in paths]
    except FileNotFoundError:
        raise errors.Expired("The picture is no longer kept.") from None
    return json.dumps(wire.legacy_answer(job, pictures, warnings)).encode()
