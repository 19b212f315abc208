"""The pages' own files: what stands under /static, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from vellumd import errors
from vellumd_http import results

FOLDER = Path(__file__).parent / "static"

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
STUDIO = (
    "api.js", "compare.js", "compose.js", "copy.js", "dom.js", "engine.js", "flow.js", "jobs.js",
    "mask.js", "phone.js", "pictures.js", "presets.js", "qr.js", "samples.js", "stage.js",
    "store.js", "stream.js", "studio.js", "words.js",
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
    "swagger-ui.css": ("swagger/swagger-ui.css", _STYLE),
    "swagger-ui-bundle.js": ("swagger/swagger-ui-bundle.js", _SCRIPT),
}
"""The only files served: name to place and media type."""


@dataclass(frozen=True)
class File:
    """A file in memory, once: all who are sent it share it."""

    data: bytes
    packed: bytes
    tag: str


def read(place: str) -> File:
    """The file at `place` below `FOLDER`; `packed` is its gzip, `tag` the hash it is known by."""
    data = (FOLDER / place).read_bytes()
    return File(data, gzip.compress(data, 9, mtime=0), hashlib.sha256(data).hexdigest()[:32])


_kept: dict[str, File] = {}


async def load(place: str) -> File:
    """As `read`, once; a thread is asked only then, since each hop costs a page's start."""
    if place not in _kept:
        _kept[place] = await asyncio.to_thread(read, place)
    return _kept[place]


async def text(place: str) -> str:
    """A page's text."""
    return (await load(place)).data.decode()


async def send(request: web.Request) -> web.StreamResponse:
    """One of `FILES`; the browser keeps it, and asks each time whether it is still the same."""
    known = FILES.get(request.match_info["file"])
    if known is None:
        raise errors.NotFound("There is no such file.")
    place, type = known
    file = await load(place)
    headers = {"ETag": f'"{file.tag}"', "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if results.has(request, file.tag):
        return web.Response(status=304, headers=headers)
    data = file.data
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        data, headers["Content-Encoding"] = file.packed, "gzip"
    if len(data) <= results.CHUNK:  # in one write, where no slow reader can hold much
        return web.Response(body=data, headers={**headers, "Content-Type": type})
    return await results.send_data(request, data, type, headers)
