"""Events as they happen: server-sent events, resumable without gap or repeat."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from vellumd import JobEvent, TransportContext, models
from vellumd_http import wire
from vellumd_http.native import JOB
from vellumd_http.streams import Streams, closing

ENCODED_MAX = 8
"""Events whose bytes are kept: listeners are at the same one, or nearly."""


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

    def __init__(self, context: TransportContext, streams: Streams) -> None:
        self._jobs = context.jobs
        self._streams = streams
        self._encoder = Encoder()

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
        events = self._jobs.events(job_id, 0, previews=previews)
        async with closing(events):
            async for event in events:
                if event.seq is None or event.seq > since:
                    yield event
                if event.type in models.ENDS:
                    return

    async def _stream(
        self, request: web.Request, events: AsyncIterator[JobEvent]
    ) -> web.StreamResponse:
        with self._streams.slot():
            return await self._streams.send(request, events, self._encoder.encode)


def _asked(request: web.Request) -> tuple[int | None, bool]:
    """After which event, and whether with previews. The header is what reconnects send."""
    query = request.query
    wire.check_query(query, {"since", "preview"})
    since = wire.query_int(query, "since")
    if "Last-Event-ID" in request.headers:
        since = wire.query_int(request.headers, "Last-Event-ID")
    return since, wire.flag(query, "preview")


async def _replay(events: list[JobEvent]) -> AsyncIterator[JobEvent]:
    for event in events:
        yield event
