"""The pages' own files: what stands under /static, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from vellumd import errors
from vellumd_http import results

FOLDER = Path(__file__).parent / "static"

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
STUDIO = (
    "api.js", "compare.js", "compose.js", "copy.js", "dom.js", "engine.js", "flow.js", "jobs.js",
    "mask.js", "paint.js", "phone.js", "pictures.js", "presets.js", "qr.js", "samples.js",
    "stage.js", "store.js", "stream.js", "studio.js", "words.js",
)  # fmt: skip
"""The studio's modules; the page names them, so that they come at the same time."""
FILES = {
    "page.css": ("page.css", _STYLE),
    "studio.css": ("studio.css", _STYLE),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "theme.js": ("theme.js", _SCRIPT),
    "key.js": ("key.js", _SCRIPT),
    **{name: (f"studio/{name}", _SCRIPT) for name in STUDIO},
    "docs.js": ("docs.js", _SCRIPT),
    "guide.css": ("guide.css", _STYLE),
    "swagger-ui.css": ("swagger/swagger-ui.css", _STYLE),
    "swagger-ui-bundle.js": ("swagger/swagger-ui-bundle.js", _SCRIPT),
}
"""The only files served: name to place and media type."""


@cache
def read(place: str) -> bytes:
    """The file at `place` below `FOLDER`, read once: all who are sent it share it."""
    return (FOLDER / place).read_bytes()


@cache
def pack(place: str) -> bytes:
    """The same as gzip."""
    return gzip.compress(read(place), 9, mtime=0)


@cache
def tag(place: str) -> str:
    """The hash that a browser knows the file by."""
    return hashlib.sha256(read(place)).hexdigest()[:32]


_T = TypeVar("_T", bytes, str)
_made: set[tuple[Callable[[str], bytes | str], str]] = set()
_making = threading.Lock()


async def _once(make: Callable[[str], _T], place: str) -> _T:
    """What `make` gives: by a thread the first time, where many who ask at once make one."""
    if (make, place) in _made:
        return make(place)

    def made() -> _T:
        with _making:
            return make(place)

    result = await asyncio.to_thread(made)
    _made.add((make, place))
    return result


async def text(place: str) -> str:
    """A page's text."""
    return (await _once(read, place)).decode()


async def send(request: web.Request) -> web.StreamResponse:
    """One of `FILES`; the browser keeps it, and asks each time whether it is still the same."""
    known = FILES.get(request.match_info["file"])
    if known is None:
        raise errors.NotFound("There is no such file.")
    place, type = known
    known_as = await _once(tag, place)
    headers = {"ETag": f'"{known_as}"', "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if results.has(request, known_as):
        return web.Response(status=304, headers=headers)
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    data = await _once(pack if packed else read, place)
    if packed:
        headers["Content-Encoding"] = "gzip"
    if len(data) <= results.CHUNK:  # in one write, where no slow reader can hold much
        return web.Response(body=data, headers={**headers, "Content-Type": type})
    return await results.send_data(request, data, type, headers)
