"""What queue servers do to their workers, on purpose and at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from vellumd_queue.server.ledger import Ledger

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HUGE = 200 << 20
"""Bytes of a body that nobody should read."""

ANYWHERE = ("500", "503", "silence", "reset", "slow", "redirect", "html", "huge")
"""Faults of every address that workers use."""
NEXT = ("again", "other")
"""A job that was given before comes once more: as it was, or with other content."""
RESULT = ("cut",)
"""The result is kept, and the connection cut instead of an answer."""
ALL = (*ANYWHERE, *NEXT, *RESULT)


class Faults:
    """Breaks a share of the answers that workers get.

    `rate` is that share, `kinds` what may happen; what happened least so far is next.
    `silence_s` is for how long nothing or little is said where that is the fault.
    """

    def __init__(
        self,
        ledger: Ledger,
        rate: float,
        seed: int,
        kinds: tuple[str, ...] = ALL,
        silence_s: float = 120.0,
    ) -> None:
        self._ledger = ledger
        self._rate = rate
        self._random = random.Random(seed)
        self._kinds = kinds
        self._silence_s = silence_s

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer, or do something else instead."""
        kinds = self._kinds_for(request.path)
        if not kinds or self._random.random() >= self._rate:
            return await handler(request)
        kind = self._rarest(kinds)
        self._ledger.fault(kind)
        fault: Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
        fault = getattr(self, f"_{kind}")
        try:
            return await fault(request, handler)
        except ConnectionError:  # the worker had enough
            return web.Response()

    def _kinds_for(self, path: str) -> list[str]:
        own = {"/api/queue/next": NEXT, "/api/queue/result": RESULT}.get(path)
        return [] if own is None else [kind for kind in (*ANYWHERE, *own) if kind in self._kinds]

    def _rarest(self, kinds: list[str]) -> str:
        happened = self._ledger.faults()
        return min(kinds, key=lambda kind: (happened.get(kind, 0), self._random.random()))

    # one a kind

    async def _500(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.json_response({"error": "told to fail"}, status=500)

    async def _503(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "1"})

    async def _silence(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(self._silence_s)
        return await self._reset(request, handler)

    async def _reset(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response()

    async def _cut(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await handler(request)
        return await self._reset(request, handler)

    async def _slow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer, drop by drop: the pieces come quickly enough, yet it never ends."""
        answer = web.StreamResponse()
        await answer.prepare(request)
        end = asyncio.get_running_loop().time() + self._silence_s
        while asyncio.get_running_loop().time() < end:
            await answer.write(b" ")
            await asyncio.sleep(0.1)
        return await self._reset(request, handler)

    async def _redirect(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/login"})

    async def _html(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 200 if request.method == "GET" else 502
        page = "<!doctype html><title>Log in</title>"
        return web.Response(text=page, content_type="text/html", status=status)

    async def _huge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 200 if request.method == "GET" else 500
        answer = web.StreamResponse(status=status)
        await answer.prepare(request)
        piece = b'["' + b"A" * (1 << 20)
        for _ in range(HUGE >> 20):
            await answer.write(piece)
        return answer

    async def _again(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return self._mixed_up({}) or await handler(request)

    async def _other(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        other = {"prompt": f"other {self._random.randrange(2)}"}
        return self._mixed_up(other) or await handler(request)

    def _mixed_up(self, changes: dict[str, Any]) -> web.Response | None:
        job = self._ledger.again(self._random.randrange(1 << 30), changes)
        return None if job is None else web.json_response(job)
