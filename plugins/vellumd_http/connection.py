"""One client's connection: aiohttp's own, with a deadline for readers and our words for errors.

aiohttp ends a connection that sends no request within the keep-alive time, but waits for
ever for a reader that takes nothing, even after it has closed (measured).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, cast

from aiohttp import web

from vellumd import errors
from vellumd_http import answers
from vellumd_http.body import Pace

SYSTEM_BUFFER = 256 << 10
"""Bytes that the system holds for a reader. Left to itself it takes megabytes: memory for
each stalled reader, and a slow one would seem stalled while it empties them."""


class _Counted:
    """A transport that knows how much of what it was given has been taken."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._given = 0

    @property
    def taken(self) -> int:
        """Bytes that wait here no more."""
        return self._given - self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """As the transport's own."""
        self._given += len(data)
        self._transport.write(data)

    def writelines(self, parts: Sequence[bytes]) -> None:
        """As the transport's own."""
        self._given += sum(map(len, parts))
        self._transport.writelines(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(web.RequestHandler):
    """Ends when its reader takes less than `pace.progress` bytes of what waits in `stall_s`."""

    __slots__ = ("_link", "_pace", "_verdict")

    def __init__(self, server: web.Server, pace: Pace, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._pace = pace
        self._link: _Counted | None = None
        self._verdict: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be told of the first byte that the system does not take at once."""
        assert isinstance(transport, asyncio.Transport)
        self._link = _Counted(transport)
        super().connection_made(cast(asyncio.Transport, self._link))
        wire = transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SYSTEM_BUFFER)
        # Last: of TLS the handshake may be waiting, so that writing is paused at once.
        transport.set_write_buffer_limits(high=1)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is waited for any more."""
        self._let_be()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Bytes wait for the reader: from now on it has to take some."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The reader has taken everything."""
        self._let_be()
        super().resume_writing()

    def _watch(self) -> None:
        assert self._link is not None
        self._verdict = self._loop.call_later(self._pace.stall_s, self._judge, self._link.taken)

    def _judge(self, before: int) -> None:
        assert self._link is not None
        if self._link.taken - before < self._pace.progress:
            self._link.abort()  # closing would wait for the reader
        else:
            self._watch()

    def _let_be(self) -> None:
        if self._verdict is not None:
            self._verdict.cancel()
            self._verdict = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP; not logged, or anybody could fill the disk."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer had begun")
        error: errors.VellumError = errors.BadRequest("The request is not well-formed HTTP.")
        if status >= 500:
            error = errors.Internal("The daemon could not answer.")
        answer = answers.of_error(request.path, error)
        answer.force_close()
        return answer
