"""Reading request bodies: bounded in bytes, in time and in number at once.

aiohttp itself has no deadline for a body: one byte a second would hold a connection
for ever (measured).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, ClientError, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from vellumd import errors
from vellumd_http import wire

JSON_MAX = 32 << 20
"""Largest JSON body, and text of a form, in bytes: these are held in memory."""
CHUNK = 64 << 10
SMALL = 64 << 10
"""Bytes that need no slot, whatever follows."""
PARTS_MAX = 64
"""Parts of one form."""
AT_ONCE = 8
"""Big bodies worked on at the same time, and big ones held in memory."""


class Slots:
    """What big bodies share, so that many of them cost no more than `at_once` do.

    `work` is for bodies whose bytes are here: one that waits for its sender gives it back,
    so nobody waits behind a slow one. `memory` is for bodies that are held in memory, and
    kept to their end: behind slow ones of that kind, others of that kind wait.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self.work = asyncio.Semaphore(at_once)
        self.memory = asyncio.Semaphore(at_once)


@dataclass(frozen=True)
class Pace:
    """How fast a body must come: `progress` bytes each `stall_s`, all within `total_s`.

    What we send has to be taken at the same pace, however long it is.
    """

    stall_s: float = 30
    total_s: float = 300
    progress: int = 64 << 10


class Paced:
    """A request's content that ends when it is too long or too slow.

    Beyond `SMALL` bytes it needs its turn in `slots`. Only time spent waiting for the
    sender counts, not what we do with the bytes. It has the methods of aiohttp's
    StreamReader that a MultipartReader uses.
    """

    def __init__(self, content: StreamReader, limit: int, pace: Pace, slots: Slots) -> None:
        self._content = content
        self._limit = limit
        self._pace = pace
        self._slots = slots
        self._has: list[asyncio.Semaphore] = []
        self._left = pace.total_s
        self._quiet = pace.stall_s
        self._mark = 0
        self._back = b""

    async def read(self, n: int = CHUNK) -> bytes:
        """Up to `n` bytes; none at the end."""
        if self._back:
            data, self._back = self._back[:n], self._back[n:]
            return data
        if self._content.total_bytes > SMALL:
            await self._take(self._slots.work)
        if ready := self._content.read_nowait(n):  # what is here already needs no deadline
            self._count(0)
            return ready
        if self._content.at_eof():  # aiohttp warns of each further read
            return b""
        async with self._waiting():
            return await self._content.read(n)

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Through the next line feed; raises where a line is longer than allowed."""
        if not self._back:
            self._back = await self.read()
        line, feed, self._back = self._back.partition(b"\n")
        if feed or self._content.at_eof():
            return line + feed
        async with self._waiting():
            return line + await self._content.readline(max_line_length=max_line_length)

    def unread_data(self, data: bytes) -> None:
        """Put bytes back that belong to what comes next."""
        self._back = data + self._back

    def at_eof(self) -> bool:
        """Whether all has been read."""
        return not self._back and self._content.at_eof()

    async def all(self) -> bytearray:
        """The whole body."""
        body = bytearray()
        while chunk := await self.read():
            body += chunk
            if len(body) > SMALL:
                await self.hold()
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while chunk := await self.read():
            yield chunk

    async def hold(self) -> None:
        """Take leave to hold what comes in memory, until the end."""
        if self._slots.memory not in self._has:
            self._give(self._slots.work)  # or eight in line here would stop everybody
            await self._take(self._slots.memory)

    def close(self) -> None:
        """Let the next bodies in line go on."""
        for slot in (self._slots.work, self._slots.memory):
            self._give(slot)

    async def _take(self, slot: asyncio.Semaphore) -> None:
        if slot in self._has:
            return
        try:
            async with asyncio.timeout(self._pace.total_s):
                await slot.acquire()
        except TimeoutError:
            raise errors.BodyTimeout("Too many other uploads were in front.") from None
        self._has.append(slot)

    def _give(self, slot: asyncio.Semaphore) -> None:
        if slot in self._has:
            self._has.remove(slot)
            slot.release()

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        self._give(self._slots.work)
        start = time.monotonic()
        try:
            async with asyncio.timeout(min(self._quiet, self._left)):
                yield
        except TimeoutError:
            raise errors.BodyTimeout("The body came too slowly.") from None
        except (ConnectionError, ClientError, web.RequestPayloadError):
            raise errors.BadRequest("The body ended early.") from None
        self._count(time.monotonic() - start)

    def _count(self, waited: float) -> None:
        received = self._content.total_bytes
        if received > self._limit:
            raise too_large(self._limit)
        self._left -= waited
        self._quiet -= waited
        if received - self._mark >= self._pace.progress:
            self._mark, self._quiet = received, self._pace.stall_s


def too_large(limit: int) -> errors.PayloadTooLarge:
    """The error of a body beyond `limit` bytes."""
    return errors.PayloadTooLarge(f"The body is larger than {limit >> 20} MiB.")


class Bodies:
    """Opens bodies, which share their slots."""

    def __init__(self, max_bytes: int, pace: Pace | None = None, at_once: int = AT_ONCE) -> None:
        self.max_bytes = max_bytes
        self._pace = pace or Pace()
        self._slots = Slots(at_once)

    @asynccontextmanager
    async def open(self, request: web.Request, limit: int | None = None) -> AsyncIterator[Paced]:
        """The body of `request`, at most `limit` bytes (default: the largest allowed)."""
        limit = min(limit or self.max_bytes, self.max_bytes)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise errors.BadRequest("Content-Encoding: compressed bodies are not taken.")
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        paced = Paced(request.content, limit, self._pace, self._slots)
        try:
            yield paced
        finally:
            paced.close()

    async def json(self, request: web.Request) -> dict[str, Any]:
        """The JSON object in the body, whatever its Content-Type."""
        async with self.open(request, JSON_MAX) as paced:
            body = await paced.all()
            if len(body) <= SMALL:
                fields = wire.parse_object(body)
            else:
                fields = await asyncio.to_thread(wire.parse_object, body)
        return fields


def is_form(request: web.Request) -> bool:
    """Whether the body is multipart."""
    return request.content_type.startswith("multipart/")


class Part:
    """One part of a form: a text or a file."""

    def __init__(self, part: BodyPartReader, name: str) -> None:
        self._part = part
        self.name = name

    @property
    def filename(self) -> str | None:
        """The sender's name for the file; asked for pictures only, since it is parsed anew."""
        return self._part.filename

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        with _well_formed():
            return bytes(await self._part.read_chunk(CHUNK))

    async def rest(self, first: bytes = b"") -> AsyncIterator[bytes]:
        """`first` and all that follows."""
        chunk = first or await self.read()
        while chunk:
            yield chunk
            chunk = await self.read()


async def parts(paced: Paced, request: web.Request) -> AsyncIterator[Part]:
    """The parts of a form in their order; raises `BadRequest` for a malformed one."""
    if request.content_type != "multipart/form-data":
        raise errors.BadRequest("Content-Type: send multipart/form-data or JSON.")
    with _well_formed():
        reader = MultipartReader(request.headers, paced)  # type: ignore[arg-type]
    for _ in range(PARTS_MAX):
        with _well_formed():
            part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader) or not part.name:
            raise errors.BadRequest("A part of the form has no name, or parts of its own.")
        yield Part(part, part.name)
    raise errors.BadRequest(f"The form has more than {PARTS_MAX} parts.")


@contextmanager
def _well_formed() -> Iterator[None]:
    """What aiohttp raises for a malformed form is whatever exception was at hand."""
    try:
        yield
    except (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError):
        raise errors.BadRequest("The multipart body is malformed.") from None
