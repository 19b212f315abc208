"""What an operator does to the queue and the engine: hold, go on, unload, load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from vellumd import TransportContext


class Control:
    """The switches under /v1/queue and /v1/engine; each answers with how both are then."""

    def __init__(self, context: TransportContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The routes of this part."""
        control = self._context.control
        return [
            web.post("/v1/queue/pause", self._switch(control.pause, 200)),
            web.post("/v1/queue/resume", self._switch(control.resume, 200)),
            web.post("/v1/engine/load", self._switch(control.load, 202)),
            web.post("/v1/engine/unload", self._switch(control.unload, 202)),
        ]

    def _switch(self, turn: Callable[[], Awaitable[None]], status: int) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            await turn()
            info = self._context.info()
            return web.json_response(
                {"queue": info["queue"], "engine": info["engine"]}, status=status
            )

        return handle
