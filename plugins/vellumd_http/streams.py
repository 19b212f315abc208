"""Server-sent events on the wire: so many at once, with a heartbeat, ended with the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from aiohttp import web

from vellumd import errors
from vellumd_http.results import CHUNK, send_bytes

T = TypeVar("T")

STREAMS_MAX = 256
"""Streams open at the same time."""
HEARTBEAT_S = 15
"""Seconds between comments that keep proxies from closing a quiet stream."""


class Streams:
    """All event streams of the door; each ends soon after its reader's key was removed."""

    def __init__(
        self, admits: Callable[[web.Request], bool], heartbeat_s: float | None = None
    ) -> None:
        """`admits` tells whether a request has the key it needs."""
        self._admits = admits
        self._heartbeat_s = HEARTBEAT_S if heartbeat_s is None else heartbeat_s
        self._open = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams: the daemon stops."""
        self._closing.set()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Room for one stream; raises `QueueFull` if too many are open."""
        if self._open >= STREAMS_MAX:
            raise errors.QueueFull(f"{STREAMS_MAX} event streams are open.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def send(
        self,
        request: web.Request,
        events: AsyncIterator[T],
        encode: Callable[[T], bytes],
    ) -> web.StreamResponse:
        """Answer with events as they come, until they end."""
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        line = asyncio.Lock()  # no heartbeat in the middle of a large event
        try:
            async with closing(events), asyncio.TaskGroup() as tasks:
                beat = self._beat(request, response, line)
                beating = tasks.create_task(beat, name="sse heartbeat")
                async for event in events:
                    async with line:
                        await _write(response, encode(event))
                beating.cancel()
        except* ConnectionError:
            raise ConnectionResetError("the reader left") from None
        await response.write_eof()
        return response

    async def _beat(
        self, request: web.Request, response: web.StreamResponse, line: asyncio.Lock
    ) -> None:
        while not self._closing.is_set():
            if not self._admits(request):
                raise ConnectionResetError("the reader's key was removed")
            async with line:
                await send_bytes(response, b":\n\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._closing.wait()
        raise ConnectionResetError("the daemon stops")


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Small events without a pause as in `send_bytes`.

    Most of the time the next one is not there yet, and of a backlog at most a page comes at
    once.
    """
    if len(data) <= CHUNK:
        await response.write(data)
        return
    for start in range(0, len(data), CHUNK):
        await send_bytes(response, data[start : start + CHUNK])


@asynccontextmanager
async def closing(events: AsyncIterator[object]) -> AsyncIterator[None]:
    """End the generator with the block, not whenever the garbage is collected."""
    try:
        yield
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
