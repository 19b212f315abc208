"""One queue server over HTTP: bounded answers, no redirects, one kind of failure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from vellumd import addresses, errors, sending
from vellumd_queue.mapping import Id, with_id

if TYPE_CHECKING:
    from vellumd_queue.plugin import ServerSettings

MIB = 1 << 20
PIECE = 1 << 16


@dataclass(frozen=True)
class Bounds:
    """What a server may cost: seconds and bytes.

    `silence_s` is between two pieces of an answer, `total_s` for all of it. A pull is given
    time, since a server that gives each job once has forgotten the one we hang up on.
    `fetch_s` is for how long a picture behind a URL may fail until its job is refused.
    """

    connect_s: float = 10
    silence_s: float = 30
    total_s: float = 300
    fetch_s: float = 600
    job: int = 48 * MIB
    picture: int = 64 * MIB
    word: int = MIB


class ServerDownError(Exception):
    """The server did not do its part; the text continues "the server ..."."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.retry_after = retry_after


class Client:
    """The calls of one server's queue."""

    def __init__(
        self, session: aiohttp.ClientSession, server: ServerSettings, bounds: Bounds
    ) -> None:
        self._session = session
        self._server = server
        self.bounds = bounds
        self._timeout = aiohttp.ClientTimeout(
            total=bounds.total_s, sock_connect=bounds.connect_s, sock_read=bounds.silence_s
        )

    async def next(self) -> bytes:
        """What the server answers when asked for a job; empty if it has none."""
        call, params = self._server.map.next, {"worker": self._server.worker}
        async with self._ask(call, params=params) as answer:
            if answer.status in (204, 404):
                return b""
            check(answer)
            return await read(answer, self.bounds.job)

    async def picture(self, url: str) -> AsyncGenerator[bytes, None]:
        """A picture of a job, in pieces; raises `BadImage` if it is not to be had."""
        async with self._ask(f"GET {url}") as answer:
            if 300 <= answer.status < 500 and answer.status != 429:
                raise errors.BadImage(f"images: its URL answers {answer.status}.")
            check(answer)
            read = 0
            async for piece in answer.content.iter_chunked(PIECE):
                read += len(piece)
                if read > self.bounds.picture:
                    raise errors.BadImage("images: behind its URL are too many bytes.")
                yield piece

    async def send(self, id: Id, body: bytes, type: str) -> str:
        """Post a result: `delivered`, or `gone` where the server does not want it any more."""
        call, headers = with_id(self._server.map.result, id), {"Content-Type": type}
        async with self._ask(call, data=body, headers=headers) as answer:
            if answer.status in (404, 410):
                return "gone"
            if answer.status != 409:  # 409: it has a result already
                check(answer)
            await read(answer, self.bounds.word)
            return "delivered"

    async def beat(self, id: Id) -> None:
        """Tell that the job is still worked on."""
        fields = {"id": id, "worker": self._server.worker}
        call = with_id(self._server.map.heartbeat, id)
        async with self._ask(call, json=fields) as answer:
            await read(answer, self.bounds.word)

    @asynccontextmanager
    async def _ask(self, call: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        method, _, place = call.partition(" ")
        url = place if "://" in place else self._server.url + place
        headers = dict(options.pop("headers", {}))
        if self._server.token:
            headers["Authorization"] = f"Bearer {self._server.token.get_secret_value()}"
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout,
                **options,
            ) as answer:
                yield answer
        except aiohttp.InvalidURL:  # ours was checked at the start, so it is a picture's
            raise errors.BadRequest("images: a URL is none.") from None
        except aiohttp.ClientConnectorDNSError as error:
            forbidden = isinstance(error.os_error, addresses.ForbiddenAddressError)
            what = "has a name that leads where no server may be" if forbidden else "is not known"
            raise ServerDownError(what) from None
        except aiohttp.ClientConnectorError:
            raise ServerDownError("cannot be reached") from None
        except TimeoutError:
            raise ServerDownError("is silent") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise ServerDownError("breaks off its answer") from None


def open_session() -> aiohttp.ClientSession:
    """What all servers are asked through: no cookies, and no name leads to a cloud's secrets."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=addresses.Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def check(answer: aiohttp.ClientResponse) -> None:
    """Raise `ServerDownError` unless the answer is a good one."""
    if 200 <= answer.status < 300:
        return
    if answer.status < 400:
        text = "redirects, which is not followed; set url to where it leads"
    elif answer.status in (401, 403):
        text = f"answers {answer.status}; check token_file"
    else:
        text = f"answers {answer.status}"
    raise ServerDownError(text, sending.retry_after(answer.headers.get("Retry-After", "")))


async def read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, unless it is longer than `most` bytes: then hang up."""
    if (answer.content_length or 0) > most:
        raise ServerDownError(f"answers with more than {most >> 20} MiB")
    body = bytearray()
    async for piece in answer.content.iter_chunked(PIECE):
        body += piece
        if len(body) > most:
            raise ServerDownError(f"answers with more than {most >> 20} MiB")
    return bytes(body)
