"""The form of an edit as it comes in: fields, and pictures that go to the spool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiohttp import web

from vellumd import ImageRef, TransportContext, errors
from vellumd_http import wire
from vellumd_http.body import JSON_MAX, Bodies, Paced, Part, is_form, parts


class Intake:
    """Reads edits from requests; never holds a whole upload in memory."""

    def __init__(self, context: TransportContext, bodies: Bodies) -> None:
        self._context = context
        self._bodies = bodies

    async def edit(
        self, request: web.Request, known: Collection[str] = wire.LEGACY_FIELDS
    ) -> dict[str, Any]:
        """The fields of an edit, its pictures staged: `images` and perhaps `mask`.

        Of a form's other fields than `known` only the names.
        """
        if is_form(request):
            fields = await self._from_form(request, known)
        else:
            fields = await self._from_json(request)
        wire.check_text(fields)
        return fields

    async def upload(self, request: web.Request) -> ImageRef:
        """A body that is one picture, staged."""
        if is_form(request):
            raise errors.BadRequest("Send the picture's bytes as the body, not as a form.")
        async with self._bodies.open(request) as paced:
            return await self._context.stage(paced.chunks())

    async def _from_json(self, request: web.Request) -> dict[str, Any]:
        async with self._bodies.open(request, JSON_MAX) as paced:
            fields = await paced.json()
            pictures, mask = wire.take_pictures(fields)
            self._check_count(len(pictures))
            fields["images"] = await self._resolve(pictures, "images")
            if mask is not None:
                fields["mask"] = (await self._resolve([mask], "mask"))[0]
        return fields

    async def _resolve(self, pictures: list[Any], field: str) -> list[ImageRef]:
        """Stage each picture; the list is emptied on the way, to free its texts."""
        refs: list[ImageRef] = []
        while pictures:
            name = f"{field}.{len(refs)}" if field == "images" else field
            refs.append(await self._resolve_one(pictures.pop(0), name))
        return refs

    async def _resolve_one(self, picture: Any, field: str) -> ImageRef:
        with errors.about(field):
            if sha256 := wire.staged_hash(picture):
                return await self._context.staged(sha256)
            data = await asyncio.to_thread(wire.decode_picture, picture, field)
            return await self._context.stage(data)

    async def _from_form(self, request: web.Request, known: Collection[str]) -> dict[str, Any]:
        async with self._bodies.open(request) as paced:
            form = _Form(paced)
            async for part in parts(paced, request):
                await self._take(part, form, known)
        fields = wire.form_fields(form.texts)
        fields["images"] = form.images
        if form.mask is not None:
            fields["mask"] = form.mask
        return fields

    async def _take(self, part: Part, form: _Form, known: Collection[str]) -> None:
        if part.name in wire.PICTURES:
            self._check_count(len(form.images) + 1)
            field = f"images.{len(form.images)}"
            form.images.append(await self._picture(part, await part.read(), field, form))
        elif part.name == "mask":
            if first := await part.read():  # a browser sends a file not chosen as an empty one
                form.mask = await self._picture(part, first, "mask", form)
        elif part.name in known:
            form.texts[part.name] = await form.text(part.rest(), part.name)
        else:
            async for _ in part.rest():
                pass
            form.texts[part.name] = "?"

    async def _picture(self, part: Part, first: bytes, field: str, form: _Form) -> ImageRef:
        """A file, or a text that names or holds one; no picture begins like those."""
        if first.startswith((b"sha256:", b"data:")):
            body = await form.paced.whole(part.rest(first))
            return await self._resolve_one(_decoded(body, field).strip(), field)
        with errors.about(field):
            return await self._context.stage(part.rest(first), wire.clean_name(part.filename))

    def _check_count(self, count: int) -> None:
        most = self._context.info()["limits"]["max_images"]
        if count > most:
            raise errors.TooManyImages(f"An edit takes at most {most} pictures.")


class _Form:
    """What a form has brought so far; the texts it keeps share one budget of bytes."""

    def __init__(self, paced: Paced) -> None:
        self.paced = paced
        self.texts: dict[str, str] = {}
        self.images: list[ImageRef] = []
        self.mask: ImageRef | None = None
        self._left = wire.FIELD_MAX

    async def text(self, chunks: AsyncIterator[bytes], name: str) -> str:
        """The text that `chunks` make."""
        body = bytearray()
        async for chunk in chunks:
            self._left -= len(chunk)
            if self._left < 0:
                raise errors.BadRequest(f"{name}: the form has more than 1 MiB of text.")
            body += chunk
        return _decoded(body, name)


def _decoded(body: bytearray, name: str) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise errors.BadRequest(f"{name}: is not UTF-8 text.") from None
