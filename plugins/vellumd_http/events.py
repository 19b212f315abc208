"""Events as they happen: server-sent events, resumable without gap or repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from vellumd import JobEvent, JobStatus, TransportContext, errors
from vellumd_http import wire
from vellumd_http.native import JOB
from vellumd_http.results import send_bytes

STREAMS_MAX = 256
"""Streams open at the same time."""
ENCODED_MAX = 8
"""Events whose bytes are kept: listeners are at the same one, or nearly."""
HEARTBEAT_S = 15
"""Seconds between comments that keep proxies from closing a quiet stream."""


def encode(event: JobEvent) -> bytes:
    """An event on the wire; only durable ones have an id to resume after."""
    head = "" if event.seq is None else f"id: {event.seq}\n"
    return f"{head}event: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


class Encoder:
    """Events on the wire, each encoded once for all who listen: they send it one after another."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[JobEvent, bytes]] = {}

    def encode(self, event: JobEvent) -> bytes:
        """See `encode`."""
        found = self._known.get(id(event))
        if found is not None:
            return found[1]
        if len(self._known) >= ENCODED_MAX:
            self._known.pop(next(iter(self._known)))
        data = encode(event)
        self._known[id(event)] = event, data  # the event too, so that its id stays its own
        return data


class Events:
    """The streams of one job and of all jobs."""

    def __init__(self, context: TransportContext, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._jobs = context.jobs
        self._heartbeat_s = heartbeat_s
        self._encoder = Encoder()
        self._open = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams: the daemon stops."""
        self._closing.set()

    def routes(self) -> list[web.RouteDef]:
        """The routes of the streams."""
        return [
            web.get("/v1/events", self.all, allow_head=False),
            web.get(JOB + "/events", self.of_job, allow_head=False),
        ]

    async def all(self, request: web.Request) -> web.StreamResponse:
        """Events of all jobs: those after `since`, or from now on."""
        since, previews = _asked(request)
        return await self._stream(request, self._jobs.events(None, since, previews=previews))

    async def of_job(self, request: web.Request) -> web.StreamResponse:
        """All events of one job, those after `since` if given; ends with the job.

        To a reader who has seen the end it says 204, which stops an EventSource.
        """
        since, previews = _asked(request)
        job = await self._jobs.get(request.match_info["job"])
        events = self._until_end(job.id, since or 0, previews)
        if not job.status.terminal:
            return await self._stream(request, events)
        left = [event async for event in events]
        return await self._stream(request, _replay(left)) if left else web.Response(status=204)

    async def _until_end(self, job_id: str, since: int, previews: bool) -> AsyncIterator[JobEvent]:
        """Reads from the first event on, so that it meets the last one in any case."""
        async with _closing(self._jobs.events(job_id, 0, previews=previews)) as events:
            async for event in events:
                if event.seq is None or event.seq > since:
                    yield event
                if event.type in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED):
                    return

    async def _stream(
        self, request: web.Request, events: AsyncIterator[JobEvent]
    ) -> web.StreamResponse:
        if self._open >= STREAMS_MAX:
            raise errors.QueueFull(f"{STREAMS_MAX} event streams are open.")
        self._open += 1
        try:
            response = web.StreamResponse(headers={"Cache-Control": "no-store"})
            response.content_type = "text/event-stream"
            await response.prepare(request)
            await self._pump(response, events)
            await response.write_eof()
            return response
        finally:
            self._open -= 1

    async def _pump(self, response: web.StreamResponse, events: AsyncIterator[JobEvent]) -> None:
        try:
            async with _closing(events), asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._beat(response), name="sse heartbeat")
                async for event in events:
                    # Without a pause as in `send_bytes`: most of the time the next event is
                    # not there yet, and of a backlog at most a page comes at once.
                    await response.write(self._encoder.encode(event))
                beating.cancel()
        except* ConnectionError:
            raise ConnectionResetError("the reader left") from None

    async def _beat(self, response: web.StreamResponse) -> None:
        while not self._closing.is_set():
            await send_bytes(response, b":\n\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._closing.wait()
        raise ConnectionResetError("the daemon stops")


@asynccontextmanager
async def _closing(events: AsyncIterator[JobEvent]) -> AsyncIterator[AsyncIterator[JobEvent]]:
    """End the generator with the block, not whenever the garbage is collected."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _asked(request: web.Request) -> tuple[int | None, bool]:
    """After which event, and whether with previews. The header is what reconnects send."""
    query = request.query
    wire.check_query(query, {"since", "preview"})
    since = wire.query_int(query, "since")
    if "Last-Event-ID" in request.headers:
        since = wire.query_int(request.headers, "Last-Event-ID")
    return since, query.get("preview", "0") not in ("", "0", "false")


async def _replay(events: list[JobEvent]) -> AsyncIterator[JobEvent]:
    for event in events:
        yield event
