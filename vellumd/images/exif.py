"""The directories of TIFF, which EXIF is made of, read without trusting them."""

from __future__ import annotations

import io
import sys
from array import array
from typing import NamedTuple

from vellumd.images.reader import Reader

ORIENTATION = 274
SUB_DIRECTORIES = (34665, 34853, 40965)
"""EXIF, GPS and interoperability: decoders read them along with the first directory."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I"}


class Entry(NamedTuple):
    """One tag: its TIFF type, how many values, and where they lie."""

    kind: int
    length: int
    offset: int


class Tiff:
    """A TIFF structure (TIFF 6.0 §2); `EOFError` where it points outside."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._order = "<" if reader.take(2) == b"II" else ">"
        if reader.uint(2, self._order) != 42:
            raise EOFError
        self._next = reader.uint(4, self._order)
        self.tags: dict[int, Entry] = {}
        self.turn_page()
        for tag in SUB_DIRECTORIES:
            for offset in self.integers(tag)[:1]:
                self._directory(offset)

    def turn_page(self) -> bool:
        """Go to the next directory; False at the end. `tags` are those of the page."""
        if self._next == 0:
            return False
        self._reader.count()
        self.tags = self._directory(self._next)
        self._next = self._reader.uint(4, self._order)
        return True

    def _directory(self, offset: int) -> dict[int, Entry]:
        """Entries of one directory; what they refer to counts as metadata.

        A few kilobytes can refer to the same bytes thousands of times, and a decoder
        copies each.
        """
        reader, order = self._reader, self._order
        reader.seek(offset)
        tags = {}
        for _ in range(reader.uint(2, order)):
            tag, kind = reader.uint(2, order), reader.uint(2, order)
            count, value = reader.uint(4, order), reader.at
            size = count * _TYPE_BYTES.get(kind, 1)
            pointer = reader.uint(4, order)
            reader.count(min(size, reader.size) if size > 4 else 0)
            tags[tag] = Entry(kind, count, value if size <= 4 else pointer)
        return tags

    def integers(self, tag: int) -> list[int]:
        """The values of an integer tag; none if it is absent or no integer."""
        entry = self.tags.get(tag)
        if entry is None or entry.kind not in _INTEGERS:
            return []
        code = _INTEGERS[entry.kind]
        self._reader.seek(entry.offset)
        values = array(code, self._reader.take(entry.length * array(code).itemsize))
        if (self._order == "<") != (sys.byteorder == "little"):
            values.byteswap()
        return list(values)


def orientation(blob: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where the blob is junk.

    Raises `BadImage` for a blob that would blow up a decoder's memory.
    """
    try:
        found = Tiff(Reader(io.BytesIO(blob.removeprefix(b"Exif\0\0")))).integers(ORIENTATION)
    except EOFError:
        return 1
    return found[0] if found and 1 <= found[0] <= 8 else 1
