"""Pictures on their way in: each is put into the spool before a job asks for it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from vellumd import errors
from vellumd.models import ImageRef
from vellumd.store.room import Room
from vellumd.store.spool import Spool

PIECE = 1 << 20
"""Bytes of an upload held in memory before they go to the disk."""


class Staging:
    """Takes what doors are sent, from memory, a file or a stream, while there is room."""

    def __init__(self, spool: Spool, room: Room) -> None:
        self._spool = spool
        self._room = room

    def check_room(self) -> None:
        """See `TransportContext.check_room`."""
        self._room.check()

    async def put(self, picture: bytes | Path | AsyncIterator[bytes], name: str) -> ImageRef:
        """See `TransportContext.stage`."""
        self._room.check()
        try:
            if isinstance(picture, bytes):
                return await asyncio.to_thread(self._spool.admit_bytes, picture, name)
            if isinstance(picture, Path):
                return await asyncio.to_thread(self._put_file, picture, name)
            return await self._put_stream(picture, name)
        except OSError as error:
            raise errors.disk_error(error) from error

    def _put_file(self, picture: Path, name: str) -> ImageRef:
        incoming, file = self._spool.open_incoming()
        try:
            with file, picture.open("rb") as source:
                shutil.copyfileobj(source, file, PIECE)
            return self._spool.admit(incoming, name)
        finally:
            incoming.unlink(missing_ok=True)

    async def _put_stream(self, chunks: AsyncIterator[bytes], name: str) -> ImageRef:
        """Small pictures cost one hop to a thread; of large ones a piece is in memory."""
        piece, ended = await _next_piece(chunks)
        if ended:
            return await asyncio.to_thread(self._spool.admit_bytes, bytes(piece), name)
        incoming, file = self._spool.open_incoming()
        try:
            with file:
                while piece:
                    self._room.check()  # again: many streams at once would take the reserve
                    await asyncio.to_thread(file.write, piece)
                    piece, _ = await _next_piece(chunks)
            return await asyncio.to_thread(self._spool.admit, incoming, name)
        finally:
            incoming.unlink(missing_ok=True)

    async def find(self, sha256: str) -> ImageRef:
        """See `TransportContext.staged`."""
        return await asyncio.to_thread(self._spool.staged, sha256)


async def _next_piece(chunks: AsyncIterator[bytes]) -> tuple[bytearray, bool]:
    """The next `PIECE` bytes or a little more of a stream, and whether it ended there."""
    piece = bytearray()
    async for chunk in chunks:
        piece += chunk
        if len(piece) >= PIECE:
            return piece, False
    return piece, True
