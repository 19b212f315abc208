"""The predecessor's door: `POST /generate` answers with the finished picture."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from aiohttp import web

from vellumd import Job, TransportContext, errors, models
from vellumd_http import results, wire
from vellumd_http.intake import Intake
from vellumd_http.unanswered import Waiting


class Legacy:
    """`/generate` and `/health`."""

    def __init__(self, context: TransportContext, intake: Intake) -> None:
        self._context = context
        self._intake = intake
        self._waiting = Waiting(context, context.dir / "unanswered")

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
        async with self._waiting.job(request, edit, again=True) as job:
            job = await self._waiting.ended(request, job)
            return await self._answer(request, job, warnings)

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
