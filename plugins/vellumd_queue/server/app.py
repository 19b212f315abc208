"""The server's HTTP face: what workers, senders and people see."""

from __future__ import annotations

import hmac
import html
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from vellumd_queue.server.faults import Faults
from vellumd_queue.server.ledger import Ledger

BODY_MAX = 64 << 20
"""Bytes of the largest job or result."""
SHOWN = 50
"""Jobs on the status page."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(ledger: Ledger, token: str = "", faults: Faults | None = None) -> web.Application:
    """The server; with a token everything asks for it."""
    middlewares = [Guard(token).middleware] if token else []
    if faults:
        middlewares.append(faults.middleware)
    app = web.Application(client_max_size=BODY_MAX, middlewares=middlewares)
    app.add_routes(Server(ledger).routes())
    return app


class Guard:
    """Asks for `Authorization: Bearer TOKEN`."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who knows the token."""
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._wanted):
            return web.json_response({"error": "the token is missing or wrong"}, status=401)
        return await handler(request)


class Server:
    """The routes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/", self.status),
            web.post("/api/queue/jobs", self.add),
            web.get("/api/queue/jobs/{id}/result", self.result),
            web.get("/api/queue/next", self.next),
            web.post("/api/queue/heartbeat", self.heartbeat),
            web.post("/api/queue/result", self.take),
        ]

    async def add(self, request: web.Request) -> web.Response:
        """A sender puts a job into the queue."""
        job = _object(await request.read())
        if not isinstance(job.setdefault("id", str(uuid.uuid4())), str | int):
            raise web.HTTPBadRequest(text="an id is a text or a whole number")
        return web.json_response({"id": self._ledger.add(job)}, status=201)

    async def result(self, request: web.Request) -> web.Response:
        """A sender fetches a result as it was posted; 404 until there is one."""
        result = self._ledger.result(request.match_info["id"])
        if result is None:
            raise web.HTTPNotFound(text="no result yet")
        return web.Response(body=result, content_type="application/json")

    async def next(self, request: web.Request) -> web.Response:
        """A worker gets a job, or 204."""
        job = self._ledger.lease(request.query.get("worker", ""))
        return web.Response(status=204) if job is None else web.json_response(job)

    async def heartbeat(self, request: web.Request) -> web.Response:
        """A worker still works on its job; 404 if it is not its any more."""
        fields = _object(await request.read())
        # JSON can spell half a character, which no database takes.
        worker = str(fields.get("worker", "")).encode(errors="replace").decode()
        if not self._ledger.renew(fields.get("id"), worker):
            raise web.HTTPNotFound(text="not your job")
        return web.json_response({})

    async def take(self, request: web.Request) -> web.Response:
        """A worker posts a result; 409 if the job has one, 404 if there is no such job."""
        body = await request.read()
        fields = _object(body)
        verdict = self._ledger.take(fields.get("id"), fields.get("status") == "done", body)
        status = {"accepted": 200, "repeated": 409, "unknown": 404}[verdict]
        return web.json_response({"result": verdict}, status=status)

    async def status(self, request: web.Request) -> web.Response:
        """The page for people."""
        counts = " · ".join(f"{count} {name}" for name, count in self._ledger.counts().items())
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in job.values())
            for job in self._ledger.newest(SHOWN)
        )
        page = (
            '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
            "<title>queue</title><style>body{font:16px system-ui;margin:2rem}"
            "td,th{padding:.2rem 1rem .2rem 0;text-align:left}</style>"
            f"<h1>{counts}</h1><table><tr><th>id<th>status<th>worker<th>times given{rows}</table>"
        )
        return web.Response(text=page, content_type="text/html")


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds; 400 if it holds none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(found, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return found
