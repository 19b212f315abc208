"""The HTTP door itself: the application, its addresses, its life."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vellumd import TransportContext, errors
from vellumd_http import guard, keyfile, legacy, wire
from vellumd_http.body import Bodies, Pace
from vellumd_http.control import Control
from vellumd_http.events import Events
from vellumd_http.intake import Intake
from vellumd_http.legacy import Legacy
from vellumd_http.links import Links
from vellumd_http.native import APPLIED, Native
from vellumd_http.plugin import HttpSettings
from vellumd_http.service import Service

KEEP_ALIVE_S = 15
SHUTDOWN_S = 2
"""Seconds that open answers get when the daemon stops."""
DEFAULT_HOST = "127.0.0.1"

_PROTOCOL_LOG = logging.getLogger("vellumd.http.protocol")
_PROTOCOL_LOG.setLevel(logging.CRITICAL)
"""What aiohttp says of malformed requests; anybody could fill the disk with it."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Under no-referrer, browsers send the forms of our own page with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class HttpTransport:
    """The door as the daemon runs it."""

    def __init__(self, context: TransportContext, pace: Pace | None = None) -> None:
        self._context = context
        self._settings: HttpSettings = context.settings
        self._pace = pace

    async def run(self) -> None:
        """Serve until cancelled."""
        runner = web.AppRunner(
            self.app(),
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
            auto_decompress=False,
            logger=_PROTOCOL_LOG,
        )
        await runner.setup()
        try:
            await self._listen(runner)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def app(self) -> web.Application:
        """All routes behind the guard."""
        context, settings = self._context, self._settings
        key = guard.find_key(settings, context.dir, context.log)
        bodies = Bodies(settings.max_body_mb << 20, self._pace)
        intake = Intake(context, bodies)
        public_url = context.info()["public_url"]
        secret = keyfile.make_or_read(context.dir / "link_secret") if public_url else ""
        links = Links(public_url, secret)
        app = web.Application(
            middlewares=[self._answer_errors, _guarded(guard.Guard(settings, key))]
        )
        app.on_response_prepare.append(_add_headers)
        events = Events(context)
        for part in (
            Legacy(context, intake),
            Native(context, intake, bodies, links),
            Control(context),
            events,
            Service(context, links),
        ):
            app.add_routes(part.routes())

        async def close(_: web.Application) -> None:
            events.close()

        app.on_shutdown.append(close)
        return app

    async def _listen(self, runner: web.AppRunner) -> None:
        """Open the address; the default one also as ::1 where the machine has IPv6."""
        host, port = self._settings.host, self._settings.port
        try:
            port = await _open(runner, host, port)
        except OSError as error:
            raise _refusal(error, host, port) from None
        self._context.announce(_url(host, port))
        if host == DEFAULT_HOST:
            try:
                await _open(runner, "::1", port)
            except OSError as error:
                self._context.log.info("not on [::1]: %s", error.strerror)
            else:
                self._context.announce(_url("::1", port))
        self._context.report(True, f"listens on port {port}")

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error in the words of its route; unforeseen ones only in the log."""
        try:
            return await handler(request)
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
        return _answer(request, error)


def _guarded(watch: guard.Guard) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        watch.check(request)
        return await handler(request)

    return check


def _answer(
    request: web.Request, error: errors.VellumError | web.HTTPException
) -> web.StreamResponse:
    status, headers = error.status, {}
    if isinstance(error, web.HTTPException):  # the router's: 404 and 405
        headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        error = _of_router(request, error)
    headers |= wire.error_headers(error)
    if request.path in legacy.PATHS:
        shown, type = wire.legacy_error(error), "application/json"
    else:
        shown, type = wire.problem(error, status), "application/problem+json"
    return web.json_response(shown, status=status, headers=headers, content_type=type)


def _of_router(request: web.Request, found: web.HTTPException) -> errors.VellumError:
    if found.status == 404:
        return errors.NotFound("There is nothing under this address.")
    return errors.BadRequest(f"{request.method[:20]}: this address does not take it.")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "vellumd"
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if APPLIED in request:
        response.headers["Preference-Applied"] = request[APPLIED]


async def _open(runner: web.AppRunner, host: str, port: int) -> int:
    """Listen on `host`; returns the port, which the system chose if it was 0."""
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise errors.ConfigError(
                f"plugins.http.port: {port} of {host} is taken by another program. "
                "Stop that one, or choose another port."
            ) from None
        raise
    return int(runner.addresses[-1][1])


def _refusal(error: OSError, host: str, port: int) -> Exception:
    """What the operator has to correct, for an `error` that waiting does not mend."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return errors.ConfigError(
            f"plugins.http.host: {host} is no address of this machine. "
            "Use 127.0.0.1, 0.0.0.0 for all networks, or one of its own."
        )
    if error.errno == errno.EACCES:
        return errors.ConfigError(
            f"plugins.http.port: the system does not let this user listen on {port}. "
            "Choose a port above 1023."
        )
    return error


def _url(host: str, port: int) -> str:
    """The address to type; a wildcard is reached as this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
