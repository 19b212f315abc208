"""Reading request bodies: bounded in bytes, in time and in number at once.

aiohttp itself has no deadline for a body: one byte a second would hold a connection
for ever (measured).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aiohttp import BodyPartReader, ClientError, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from vellumd import errors
from vellumd_http import wire

JSON_MAX = 32 << 20
"""Largest JSON body, and picture that comes as text in a form, in bytes: these are taken
into memory."""
CHUNK = 64 << 10
PIECE = 1 << 20
"""Bytes read from a file at a time."""
SMALL = 64 << 10
"""Bytes that need no slot, whatever follows."""
PARTS_MAX = 64
"""Parts of one form."""
LINES_MAX = 8192
"""Lines of one form outside its parts' contents: before the first, boundaries, headers. Its
parts can have no more; lines without end would keep the loop busy."""
AT_ONCE = 8
"""Big bodies worked on at the same time."""


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

    Beyond `SMALL` bytes it needs one of `slots` to be worked on, and gives it back while it
    waits for its sender: nobody waits behind a slow one. Only that waiting counts as time,
    not what we do with the bytes. It has the methods of aiohttp's StreamReader that a
    MultipartReader uses.
    """

    def __init__(
        self,
        content: StreamReader,
        limit: int,
        pace: Pace,
        slots: asyncio.Semaphore,
        folder: Path | None,
    ) -> None:
        self._content = content
        self._limit = limit
        self._pace = pace
        self._slots = slots
        self._has_slot = False
        self._folder = folder
        self._left = pace.total_s
        self._quiet = pace.stall_s
        self._mark = 0
        self._back = b""
        self._lines = 0

    async def read(self, n: int = CHUNK) -> bytes:
        """Up to `n` bytes; none at the end."""
        if self._back:
            data, self._back = self._back[:n], self._back[n:]
            return data
        if self._content.total_bytes > SMALL:
            await self._take()
        if ready := self._content.read_nowait(n):  # what is here already needs no deadline
            self._count(0)
            return ready
        if self._content.at_eof():  # aiohttp warns of each further read
            return b""
        async with self._waiting():
            return await self._content.read(n)

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Through the next line feed; raises where there are more or longer ones than allowed."""
        self._lines += 1
        if self._lines > LINES_MAX:
            raise errors.BadRequest(f"The form has more than {LINES_MAX} lines around its parts.")
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

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while chunk := await self.read():
            yield chunk

    async def json(self) -> dict[str, Any]:
        """The JSON object that the body is, whatever its Content-Type."""
        body = await self.whole(self.chunks())
        if len(body) <= SMALL:
            return wire.parse_object(body)
        return await asyncio.to_thread(wire.parse_object, body)

    async def whole(self, chunks: AsyncIterator[bytes]) -> bytearray:
        """All that comes, at most `JSON_MAX` bytes; a big body has its slot from then on."""
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > SMALL:
                return await self._through_file(body, chunks)
        return body

    async def _through_file(self, first: bytearray, rest: AsyncIterator[bytes]) -> bytearray:
        """`first` and `rest`, which take no memory until the last of them is here.

        The file has no name, so nothing of it stays.
        """
        with _file_in(self._folder) as file:
            size = await asyncio.to_thread(_append, file, first)
            async for chunk in rest:
                size += await asyncio.to_thread(_append, file, chunk)
                if size > JSON_MAX:
                    raise too_large(JSON_MAX)
            await self._take()
            return await asyncio.to_thread(_read, file)

    def close(self) -> None:
        """Let the next body in line go on."""
        if self._has_slot:
            self._has_slot = False
            self._slots.release()

    async def _take(self) -> None:
        if self._has_slot:
            return
        try:
            async with asyncio.timeout(self._pace.total_s):
                await self._slots.acquire()
        except TimeoutError:
            raise errors.BodyTimeout("Too many other uploads were in front.") from None
        self._has_slot = True

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        self.close()
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


def _file_in(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise errors.disk_error(error) from error


def _append(file: IO[bytes], data: bytes | bytearray) -> int:
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise errors.disk_error(error) from error
    return len(data)


def _read(file: IO[bytes]) -> bytearray:
    body = bytearray()
    file.seek(0)
    while piece := file.read(PIECE):
        body += piece
    return body


def too_large(limit: int) -> errors.PayloadTooLarge:
    """The error of a body beyond `limit` bytes."""
    return errors.PayloadTooLarge(f"The body is larger than {limit >> 20} MiB.")


class Bodies:
    """Opens bodies, which share their slots; big ones that are needed whole wait in `folder`."""

    def __init__(
        self,
        max_bytes: int,
        pace: Pace | None = None,
        at_once: int = AT_ONCE,
        folder: Path | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._pace = pace or Pace()
        self._slots = asyncio.Semaphore(at_once)
        self._folder = folder

    @asynccontextmanager
    async def open(self, request: web.Request, limit: int | None = None) -> AsyncIterator[Paced]:
        """The body of `request`, at most `limit` bytes (default: the largest allowed)."""
        limit = min(limit or self.max_bytes, self.max_bytes)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise errors.BadRequest("Content-Encoding: compressed bodies are not taken.")
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        paced = Paced(request.content, limit, self._pace, self._slots, self._folder)
        try:
            yield paced
        finally:
            paced.close()

    async def json(self, request: web.Request) -> dict[str, Any]:
        """The JSON object in the body of `request`."""
        async with self.open(request, JSON_MAX) as paced:
            return await paced.json()


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
