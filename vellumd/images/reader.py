"""A picture file read in small pieces, with a cap on everything but pixels."""

from __future__ import annotations

from typing import BinaryIO

from vellumd import errors

EXTRA_MAX = 16 << 20
"""Most bytes of metadata, inflated, that a picture may carry; guards decoders' memory."""
PARTS_MAX = 65_536
"""Most chunks, segments or boxes; a file of empty ones would cost seconds to walk."""


class Reader:
    """Walks a file; a step past its end raises EOFError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._parts = 0
        self._extra = 0
        file.seek(0)

    @property
    def at(self) -> int:
        """Offset of the next byte."""
        return self._file.tell()

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.size:  # before Python sets that much memory aside
            raise EOFError
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def piece(self) -> bytes:
        """The next bytes, as many as are handy; none at the end."""
        return self._file.read(65_536)

    def uint(self, count: int, order: str = ">") -> int:
        """An unsigned number of `count` bytes, big-endian unless `order` is `<`."""
        return int.from_bytes(self.take(count), "big" if order == ">" else "little")

    def skip(self, count: int) -> None:
        """Step over `count` bytes; all of them must exist."""
        if self._file.seek(count, 1) > self.size:
            raise EOFError

    def seek(self, offset: int) -> None:
        """Go to `offset`."""
        if offset > self.size:
            raise EOFError
        self._file.seek(offset)

    def count(self, extra: int = 0) -> None:
        """Count one more part, holding `extra` bytes of metadata; raises `BadImage`."""
        self._parts += 1
        self._extra += extra
        if self._parts > PARTS_MAX or self._extra > EXTRA_MAX:
            raise errors.BadImage("The picture carries more metadata than any picture needs.")
