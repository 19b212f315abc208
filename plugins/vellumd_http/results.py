"""Sending pictures: by id, with a hash as ETag, harmless in a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from vellumd import ImageRef, TransportContext, errors, images, models
from vellumd_http import wire

CHUNK = 256 << 10
"""Bytes that are written at once."""


async def send_bytes(response: web.StreamResponse, data: bytes) -> None:
    """Write `data` and let others in; the connection drops a reader that takes none of it."""
    await response.write(data)
    await asyncio.sleep(0)  # a write that need not wait lets nobody else in


async def send_data(
    request: web.Request, data: bytes, type: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """An answer held in memory, written piece by piece; returns when it has left.

    A reader that is slow has a piece of its own in memory, not the whole.
    """
    response = web.StreamResponse(headers={**(headers or {}), "Content-Type": type})
    response.content_length = len(data)
    await response.prepare(request)
    if request.method != "HEAD":
        for start in range(0, len(data), CHUNK):
            await send_bytes(response, data[start : start + CHUNK])
    await response.write_eof()
    return response


async def send_result(
    context: TransportContext, request: web.Request, job_id: str, n: int, *, inline: bool = False
) -> web.StreamResponse:
    """Result `n` of a job, re-encoded where the query says so.

    Raises `NotDone`, `NotFound`, `Expired` or the job's own error.
    """
    path = await context.jobs.result(job_id, n)
    result = (await context.jobs.get(job_id)).results[n - 1]
    wanted = _derivation(request)
    if wanted is not None:
        return await _send_derived(request, path, result, wanted, name=f"{job_id}-{n}")
    name = f"{job_id}-{n}.{models.SUFFIXES[result.type]}"
    return await send_file(request, path, result.type, result.sha256, name, inline=inline)


async def send_input(
    context: TransportContext, request: web.Request, job_id: str, n: int
) -> web.StreamResponse:
    """Input `n` of a job as it came. Raises `NotFound` or `Expired`."""
    path = await context.jobs.input(job_id, n)
    edit = (await context.jobs.get(job_id)).request
    if edit is None or n > len(edit.images):
        raise errors.Expired("The job's inputs are no longer kept.")
    picture: ImageRef = edit.images[n - 1]
    name = f"{job_id}-input-{n}.{models.SUFFIXES.get(picture.type, 'bin')}"
    return await send_file(request, path, picture.type, picture.sha256, name)


async def send_mask(
    context: TransportContext, request: web.Request, job_id: str
) -> web.StreamResponse:
    """The mask of a job as it came. Raises `NotFound` or `Expired`."""
    path = await context.jobs.mask(job_id)
    edit = (await context.jobs.get(job_id)).request
    if edit is None or edit.mask is None:
        raise errors.Expired("The job's inputs are no longer kept.")
    name = f"{job_id}-mask.{models.SUFFIXES.get(edit.mask.type, 'bin')}"
    return await send_file(request, path, edit.mask.type, edit.mask.sha256, name)


@dataclass(frozen=True)
class Derivation:
    """A result in another form, as `?format=&max_bytes=&max_side=` ask for it."""

    format: wire.Format
    max_bytes: int | None
    max_side: int | None

    def tag(self, sha256: str) -> str:
        """What stands for it in an ETag."""
        return f"{sha256}-{self.format}-{self.max_bytes or 0}-{self.max_side or 0}"


def _derivation(request: web.Request) -> Derivation | None:
    """The wanted form; None for the result as it is."""
    query = request.query
    wire.check_query(query, {"format", "max_bytes", "max_side", "t"})
    if not {"format", "max_bytes", "max_side"} & query.keys():
        return None
    wanted = wire.FORMATS.get(query.get("format", "jpeg").lower())
    if wanted is None:
        raise errors.BadRequest("format: must be png, jpeg or webp.")
    return Derivation(
        wanted,
        wire.query_int(query, "max_bytes", least=1024),
        wire.query_int(query, "max_side", least=16),
    )


async def _send_derived(
    request: web.Request,
    path: Path,
    result: models.Result,
    wanted: Derivation,
    name: str,
) -> web.StreamResponse:
    tag = wanted.tag(result.sha256)
    if has(request, tag):
        return _not_modified(tag)
    try:
        data, type = await asyncio.to_thread(
            images.derive, path, wanted.format,
            max_bytes=wanted.max_bytes, max_side=wanted.max_side,
        )  # fmt: skip
    except FileNotFoundError:
        raise errors.Expired("The picture is no longer kept.") from None
    headers = _headers(tag, f"{name}.{models.SUFFIXES[type]}", inline=False)
    return web.Response(body=data, content_type=type, headers=headers)


async def send_file(
    request: web.Request, path: Path, type: str, sha256: str, name: str, *, inline: bool = False
) -> web.StreamResponse:
    """The file at `path`; part of it where a single Range asks so (RFC 9110 §14)."""
    if has(request, sha256):
        return _not_modified(sha256)
    try:
        size = (await asyncio.to_thread(path.stat)).st_size
    except FileNotFoundError:
        raise errors.Expired("The picture is no longer kept.") from None
    span = _range(request, size, sha256) if request.method == "GET" else None
    response = web.StreamResponse(status=206 if span else 200)
    response.headers.update(_headers(sha256, name, inline=inline))
    response.headers["Accept-Ranges"] = "bytes"
    response.content_type = type
    start, stop = span or (0, size)
    if span:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in _read(path, start, stop):
            await send_bytes(response, chunk)
    await response.write_eof()
    return response


async def _read(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        file.seek(start)
        while start < stop:
            chunk = await asyncio.to_thread(file.read, min(CHUNK, stop - start))
            if not chunk:
                raise ConnectionResetError("the file became shorter")
            start += len(chunk)
            yield chunk


def _range(request: web.Request, size: int, sha256: str) -> tuple[int, int] | None:
    """First byte and end of the wanted range; None for the whole, as servers may answer."""
    if request.headers.get("If-Range", f'"{sha256}"') != f'"{sha256}"':
        return None
    try:
        wanted = request.http_range
    except ValueError:
        return None
    if wanted.start is None and wanted.stop is None:
        return None
    start, stop, _ = wanted.indices(size)
    return (start, stop) if start < stop else None


def has(request: web.Request, tag: str) -> bool:
    """Whether the reader says that it has what `tag` stands for."""
    known = request.if_none_match or ()
    return any(one.value in (tag, "*") for one in known)


def _not_modified(tag: str) -> web.Response:
    return web.Response(status=304, headers={"ETag": f'"{tag}"'})


def _headers(tag: str, name: str, *, inline: bool) -> dict[str, str]:
    kind = "inline" if inline else "attachment"
    return {
        "ETag": f'"{tag}"',
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'{kind}; filename="{name}"',
    }
