"""Pages and probes: what a person or a monitor looks at first."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable
from html import escape
from typing import Any

from aiohttp import web

from vellumd import TransportContext, errors
from vellumd_http import files, guide, links, openapi, results, wire

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class Service:
    """`/`, `/docs`, `/openapi.json`, the probes and the links to results."""

    def __init__(
        self,
        context: TransportContext,
        links: links.Links,
        admits: Callable[[web.Request], bool],
        needs_key: Callable[[], bool],
    ) -> None:
        self._context = context
        self._admits = admits
        self._needs_key = needs_key
        self._links = links
        self._openapi = openapi.document(context.info()["version"])

    def routes(self) -> list[web.RouteDef]:
        """The routes of this part."""
        return [
            web.get("/", self.page),
            web.get("/docs", self.docs),
            web.get("/docs/{page}", self.guide),
            web.get("/static/{file}", self.file),
            web.get("/openapi.json", self.openapi),
            web.get("/healthz", self.alive),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
            web.get(r"/r/{job:[^/]+}/{n:\d{1,4}}", self.linked),
        ]

    async def alive(self, request: web.Request) -> web.Response:
        """200 as long as the daemon's loop turns."""
        return web.json_response({"status": "alive"})

    async def ready(self, request: web.Request) -> web.Response:
        """200 when a job that comes now is edited, or held on purpose; else 503 and why not.

        Either way it names what is wrong besides: warnings, and doors in trouble.
        """
        info = self._context.info()
        engine, doors, trouble = info["engine"], wire.doors(info), wire.trouble(info)
        shown: dict[str, Any] = {
            "state": engine["state"],
            "reason": engine["reason"] if trouble is None else trouble,
            "warming": engine["warming"],
            "queue": info["queue"]["held"] or "open",
            "doors": {name: door["text"] for name, door in doors.items() if not door["ok"]},
            "warnings": info["warnings"],
        }
        if trouble is None:
            return web.json_response({"status": "ready", **shown})
        shown |= {name: engine[name] for name in ("phase", "done", "of")}
        return web.json_response(
            {"status": "not ready", **shown}, status=503, headers={"Retry-After": "5"}
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """The daemon's figures, for Prometheus."""
        body = await self._context.metrics()
        return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})

    async def openapi(self, request: web.Request) -> web.Response:
        """The description of all routes."""
        return web.json_response(self._openapi)

    async def page(self, request: web.Request) -> web.Response:
        """The studio, whose form works without script too; to strangers, a field for a key."""
        if not self._admits(request):
            return _html(await files.text("key.html"), _PAGE_POLICY)
        text = await files.text("index.html")
        body = string.Template(text).substitute(self._facts(request))
        return _html(body, _PAGE_POLICY)

    def _facts(self, request: web.Request) -> dict[str, str]:
        """What the page says before its script runs, or where none does."""
        info = self._context.info()
        facts: dict[str, Any] = {
            "model": info["model"],
            "note": info["note"] or "",
            "engine": info["engine"]["reason"] or info["engine"]["state"],
            "held": wire.HELD[info["queue"]["held"]],
            "key": "needed" if self._needs_key() else "",
            "most": info["limits"]["max_images"],
        }
        shown = {name: escape(str(value)) for name, value in facts.items()}
        default = info["default_preset"]
        names = sorted(info["presets"], key=lambda name: (name != default, name))
        shown["presets"] = "".join(f"<option>{escape(name)}</option>" for name in names)
        shown["modules"] = "".join(
            f'<link rel="modulepreload" href="/static/{name}">' for name in files.STUDIO
        )
        return shown

    async def docs(self, request: web.Request) -> web.Response:
        """All routes, to try out; loads nothing from outside."""
        text = await files.text("docs.html")
        return _html(string.Template(text).substitute(guides=guide.menu()), _DOCS_POLICY)

    async def guide(self, request: web.Request) -> web.Response:
        """A guide, with the address by which the reader came in its samples."""
        text = await asyncio.to_thread(guide.read, request.match_info["page"])
        address = f"{request.scheme}://{request.host}"
        return _html(guide.page(text, address), _PAGE_POLICY)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """One of the pages' own files."""
        return await files.send(request)

    async def linked(self, request: web.Request) -> web.StreamResponse:
        """A result opened by its link; a wrong token is no different from no job."""
        job_id, n = request.match_info["job"], int(request.match_info["n"])
        if not self._links.opens(job_id, n, request.query.get("t", "")):
            raise errors.NotFound("The link opens nothing.")
        return await results.send_result(self._context, request, job_id, n, inline=True)


def _html(body: str, policy: str) -> web.Response:
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return web.Response(text=body, content_type="text/html", headers=headers)
