"""The HTTP door itself: the application and its life."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TextIO
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vellumd import TransportContext, errors
from vellumd_http import answers, keyfile, openai_edits, tls
from vellumd_http.access import Access
from vellumd_http.body import Bodies, Pace
from vellumd_http.connection import Connection
from vellumd_http.control import Control
from vellumd_http.events import Events
from vellumd_http.guard import Guard
from vellumd_http.intake import Intake
from vellumd_http.legacy import Legacy
from vellumd_http.links import Links
from vellumd_http.listen import DEFAULT_HOST, listen, port_of, url, url_for_others
from vellumd_http.native import APPLIED, Native
from vellumd_http.openai_edits import OpenAI
from vellumd_http.plugin import HttpSettings
from vellumd_http.presets import Presets
from vellumd_http.service import Service
from vellumd_http.session import Session
from vellumd_http.streams import Streams

KEEP_ALIVE_S = 15
"""Seconds a connection may stay without a request, from its beginning on."""
SHUTDOWN_S = 2
"""Seconds that open answers get when the daemon stops."""

_PROTOCOL_LOG = logging.getLogger("vellumd.http.protocol")
_PROTOCOL_LOG.setLevel(logging.CRITICAL)
"""What aiohttp says of malformed requests; anybody could fill the disk with it."""


class HttpTransport:
    """The door as the daemon runs it."""

    def __init__(
        self,
        context: TransportContext,
        pace: Pace | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._context = context
        self._settings: HttpSettings = context.settings
        self._pace = pace or Pace()
        self._keep_alive_s = keep_alive_s
        self._access = Access(self._settings, context.keys, context.dir)
        self._guard = Guard(self._settings, self._access)

    async def run(self) -> None:
        """Serve until cancelled."""
        self._tls = tls.context(self._settings)
        runner = web.AppRunner(self.app(), shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        servers: list[asyncio.Server] = []
        try:
            await self._listen(runner, servers)
            await asyncio.Event().wait()
        finally:
            for server in servers:
                server.close()
            await runner.cleanup()

    def app(self) -> web.Application:
        """All routes behind the guard."""
        context, settings = self._context, self._settings
        bodies = Bodies(
            settings.max_body_mb << 20,
            self._pace,
            folder=context.dir,
            check_room=context.check_room,
        )
        intake = Intake(context, bodies)
        public_url = context.info()["public_url"]
        secret = keyfile.make_or_read(context.dir / "link_secret") if public_url else ""
        links = Links(public_url, secret)
        if public_url:
            context.serve_results(links.url)
        app = web.Application(middlewares=[self._answer_errors, _guarded(self._guard)])
        app.on_response_prepare.append(_add_headers)
        streams = Streams(self._guard.admits)
        for part in (
            Legacy(context, intake),
            OpenAI(context, intake, streams),
            Native(context, intake, bodies, links),
            Presets(context, bodies),
            Control(context),
            Events(context, streams),
            Session(self._access, self._address_for_others),
            Service(context, links, self._guard.admits, lambda: self._access.needed),
        ):
            app.add_routes(_guarded_first(route) for route in part.routes())

        async def close(_: web.Application) -> None:
            streams.close()

        app.on_shutdown.append(close)
        return app

    def _address_for_others(self, request: web.Request) -> str | None:
        """The address that other machines reach; None where this one alone is answered."""
        if public_url := self._context.info()["public_url"]:
            return str(public_url).rstrip("/")
        if not self._access.open_to_others or request.transport is None:
            return None
        port = request.transport.get_extra_info("sockname")[1]
        return url_for_others(self._settings.host, port, self._tls).rstrip("/")

    async def _listen(self, runner: web.AppRunner, servers: list[asyncio.Server]) -> None:
        """Open the address; the default one also as ::1 where the machine has IPv6."""
        served = runner.server
        assert served is not None

        def connection() -> Connection:
            return Connection(
                served,
                self._pace,
                keepalive_timeout=self._keep_alive_s,
                access_log=None,
                auto_decompress=False,
                logger=_PROTOCOL_LOG,
            )

        host, context = self._settings.host, self._context
        servers.append(await listen(connection, host, self._settings.port, self._tls))
        port = port_of(servers[0])
        self._tell(port)
        context.announce(url(host, port, self._tls), self._access.file)
        if host == DEFAULT_HOST:
            try:
                servers.append(await listen(connection, "::1", port, self._tls))
            except (OSError, errors.ConfigError) as error:
                context.log.info("not on [::1]: %s", error)
            else:
                context.announce(url("::1", port, self._tls), self._access.file)
        context.report(True, f"listens on port {port}")

    def _tell(self, port: int) -> None:
        """Say who can come in. A new key goes to a terminal alone, never into a log."""
        settings, log, access = self._settings, self._context.log, self._access
        public_url = self._context.info()["public_url"]
        for network in settings.trusted_networks:
            log.warning("Machines in %s need no key: they see and change every job.", network)
        if public_url and not self._guard.answers_for(urlsplit(public_url).netloc):
            log.warning(
                "This door does not answer for the name in daemon.public_url, so its links are "
                "refused. Add the name to plugins.http.allowed_hosts."
            )
        if access.file and access.open_to_others:
            address = public_url or url_for_others(settings.host, port, self._tls)
            link = f"{address.rstrip('/')}/#key="
            log.info(
                "others can reach this door with the key in %s: browsers by %sKEY, programs send "
                "it as `Authorization: Bearer KEY`; `vellumd keys add NAME` makes others",
                access.file,
                link,
            )
            if access.made and _is_read_by_somebody(sys.stdout):
                print("Others can reach this daemon, so it needs a key. Open once in each browser:")
                print(f"  {link}{access.made}", flush=True)
            access.made = None

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error in the words of its route; unforeseen ones only in the log."""
        error: errors.VellumError | web.HTTPException
        try:
            return await handler(request)
        except errors.ConfigError as found:  # of the operator's files, so it is the operator's
            self._context.log.error("%s", found.message)
            error = errors.Internal("The daemon could not answer.")
        except (errors.VellumError, web.HTTPException) as found:
            error = found
        except ConnectionError:
            raise
        except Exception:
            self._context.log.exception("a request to %s failed", request.path)
            error = errors.Internal("The daemon could not answer.")
        # A traceback leads to this frame and so to itself: it would keep the whole body.
        error.with_traceback(None).__context__ = None
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer had begun")
        if isinstance(error, errors.VellumError):
            return answers.of_error(request.path, error)
        headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        told = answers.of_router(request.method, error)
        return answers.of_error(request.path, told, error.status, headers)


def _is_read_by_somebody(stream: TextIO | None) -> bool:
    """Whether it is a terminal: a service's output is kept, by journald for ever."""
    return stream is not None and stream.isatty()


def _guarded(watch: Guard) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        watch.check(request)
        await _let_go_on(request)
        return await handler(request)

    return check


def _guarded_first(route: web.RouteDef) -> web.RouteDef:
    """The route without aiohttp's answer to an Expect header, which the guard would not see."""

    async def say_nothing(request: web.Request) -> None:
        pass

    expecting = {**route.kwargs, "expect_handler": say_nothing}
    return web.RouteDef(route.method, route.path, route.handler, expecting)


async def _let_go_on(request: web.Request) -> None:
    """Tell a sender that waits for it to send the body (RFC 9110 §10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    answers.add_headers(response)
    openai_edits.add_headers(request, response)
    if APPLIED in request:
        response.headers["Preference-Applied"] = request[APPLIED]
