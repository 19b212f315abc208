"""How each format is laid out: its size, and whether the file is whole.

One function a format, each given a `Reader` at the file's start. They raise EOFError
where the file is cut off, `BadImage` where it is broken, and decode nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vellumd import errors
from vellumd.images import exif
from vellumd.images.reader import Reader


@dataclass(frozen=True)
class Header:
    """Media type and size; `width` and `height` are pixels after EXIF orientation.

    `orientation` (EXIF, 1 to 8) is what is left to do once Pillow has decoded: Pillow
    turns TIFF and HEIF by itself.
    """

    type: str
    width: int
    height: int
    orientation: int = 1

    @property
    def stored(self) -> tuple[int, int]:
        """The size that Pillow reports, before orientation."""
        turned = self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)


def _header(type: str, width: int, height: int, orientation: int = 1) -> Header:
    if orientation >= 5:
        width, height = height, width
    return Header(type, width, height, orientation)


def _broken() -> errors.BadImage:
    return errors.BadImage("The picture's file is broken.")


def _require(condition: bool) -> None:
    if not condition:
        raise _broken()


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bit depths by colour type, PNG 3rd edition §11.2.1."""
_PNG_PIXELS = (b"IDAT", b"fdAT")
_PNG_DEFLATED = (b"zTXt", b"iTXt", b"iCCP")
PNG_TEXT_MAX = 1 << 20
"""Pillow refuses a text chunk that inflates beyond this."""


def png(reader: Reader) -> Header:
    """Chunks up to IEND."""
    reader.skip(8)
    _require(reader.take(8) == b"\0\0\0\x0dIHDR")
    width, height = reader.uint(4), reader.uint(4)
    depth, colour, *methods = reader.take(5)
    _require(depth in _PNG_DEPTHS.get(colour, ()) and methods in ([0, 0, 0], [0, 0, 1]))
    reader.skip(4)
    kind, orientation, pixels = b"", 1, False
    while kind != b"IEND":
        length, kind = reader.uint(4), reader.take(4)
        _require(kind.isalpha() and length < 1 << 31)
        pixels = pixels or kind == b"IDAT"
        reader.count(0 if kind in _PNG_PIXELS else length)
        if kind == b"eXIf":
            orientation = exif.orientation(reader.take(length))
        elif kind in _PNG_DEFLATED:
            _check_inflated(reader, kind, reader.take(length))
        else:
            reader.skip(length)
        reader.skip(4)
    _require(pixels)
    return _header("image/png", width, height, orientation)


def _check_inflated(reader: Reader, kind: bytes, chunk: bytes) -> None:
    """Refuse text that would inflate to more than a decoder stands."""
    _, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return
        rest = b"\0" + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    inflate = zlib.decompressobj()
    try:
        reader.count(len(inflate.decompress(rest[1:], PNG_TEXT_MAX)))
    except zlib.error:
        return
    if inflate.unconsumed_tail:
        raise errors.BadImage("The picture carries more text than any picture needs.")


_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]", re.DOTALL)
"""A marker with something behind it: no stuffed 0xFF, fill byte, TEM or restart."""


def jpeg(reader: Reader) -> Header:
    """Segments and scans up to EOI; what follows it, as in motion photos, is ignored."""
    reader.skip(2)
    size: tuple[int, int] | None = None
    orientation, scanned = 1, False
    while (marker := _next_marker(reader)) != _EOI:
        length = reader.uint(2) - 2
        _require(length >= 0)
        reader.count(length if marker >= 0xE0 else 0)
        if marker in _SOF:
            _require(size is None)
            size = _jpeg_frame(reader.take(length))
        elif marker == _APP1 and orientation == 1:
            segment = reader.take(length)
            if segment.startswith(b"Exif\0\0"):
                orientation = exif.orientation(segment)
        else:
            scanned = scanned or marker == _SOS
            reader.skip(length)
    _require(size is not None and scanned)
    assert size is not None
    return _header("image/jpeg", *size, orientation)


def _jpeg_frame(body: bytes) -> tuple[int, int]:
    """Width and height in a start of frame, ITU-T T.81 §B.2.2."""
    _require(len(body) >= 6)
    if body[0] != 8 or body[5] not in (1, 3, 4):
        raise errors.UnsupportedFormat("JPEG with other than 8 bits a sample is not read.")
    return int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")


def _next_marker(reader: Reader) -> int:
    """The next marker's code; steps over the coded pixels of a scan."""
    code = reader.take(2)
    if _MARKER.match(code):
        return code[1]
    while piece := reader.piece():
        code = code[-1:] + piece
        if found := _MARKER.search(code):
            reader.skip(found.end() - len(code))
            return code[found.start() + 1]
    raise EOFError


_ZEROS_LOSSY, _ZEROS_LOSSLESS = 1 / 2048, 1 / 16
"""Zero bytes a pixel that flat pictures may end with; libwebp wrote 1/3200 and 1/30."""


def webp(reader: Reader) -> Header:
    """Chunks up to the length in the RIFF header, RFC 9649."""
    reader.skip(4)
    end = 8 + reader.uint(4, "<")
    if end > reader.size:
        raise EOFError
    reader.skip(4)
    size: tuple[int, int] | None = None
    orientation = 1
    while reader.at + 8 <= end:
        kind, length = reader.take(4), reader.uint(4, "<")
        start = reader.at
        if start + length > end:
            raise EOFError
        _require(kind.isascii() and kind.rstrip().isalnum())
        reader.count(length if kind in (b"EXIF", b"XMP ", b"ICCP") else 0)
        if kind == b"EXIF":
            orientation = exif.orientation(reader.take(length))
        elif kind in _WEBP_SIZE:
            size = size or _WEBP_SIZE[kind](reader.take(min(length, 10)))
        if kind in (b"VP8 ", b"VP8L"):
            rate = _ZEROS_LOSSLESS if kind == b"VP8L" else _ZEROS_LOSSY
            _refuse_zero_tail(reader, start, length, size, rate)
        reader.seek(min(start + length + length % 2, end))
    _require(size is not None)
    assert size is not None
    return _header("image/webp", *size, orientation)


def _vp8(data: bytes) -> tuple[int, int]:
    _require(len(data) == 10 and data[3:6] == b"\x9d\x01\x2a")
    return (
        int.from_bytes(data[6:8], "little") & 0x3FFF,
        int.from_bytes(data[8:10], "little") & 0x3FFF,
    )


def _vp8l(data: bytes) -> tuple[int, int]:
    _require(len(data) >= 5 and data[0] == 0x2F)
    bits = int.from_bytes(data[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _vp8x(data: bytes) -> tuple[int, int]:
    _require(len(data) == 10)
    return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1


_WEBP_SIZE = {b"VP8X": _vp8x, b"VP8 ": _vp8, b"VP8L": _vp8l}


def _refuse_zero_tail(
    reader: Reader, start: int, length: int, size: tuple[int, int] | None, rate: float
) -> None:
    """Refuse pixels that end in more zeros than a coder writes: a half-copied file.

    `rate` is in bytes a pixel. libwebp decodes such a file without complaint.
    """
    width, height = size or (0, 0)
    most = 64 + min(int(width * height * rate), 16 << 20)
    if length > most:
        reader.seek(start + length - most)
        if not reader.take(most).strip(b"\0"):
            raise EOFError


_BITS, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 258, 273, 279, 324, 325


def tiff(reader: Reader) -> Header:
    """The first page's size; the strips or tiles of all pages lie inside the file."""
    layout = exif.Tiff(reader)
    width, height = (layout.integers(tag)[:1] for tag in (256, 257))
    _require(bool(width and height))
    if max(layout.integers(_BITS), default=1) > 16:
        raise errors.UnsupportedFormat("TIFF with more than 16 bits a sample is not read.")
    turned = layout.integers(exif.ORIENTATION)[:1] > [4]
    size = (height[0], width[0]) if turned else (width[0], height[0])
    _check_strips(reader, layout)
    while layout.turn_page():
        _check_strips(reader, layout)
    return _header("image/tiff", *size)


def _check_strips(reader: Reader, page: exif.Tiff) -> None:
    """Raise EOFError where a page's strips or tiles reach beyond the file."""
    offsets = page.integers(_STRIPS) or page.integers(_TILES)
    lengths = page.integers(_STRIP_BYTES) or page.integers(_TILE_BYTES)
    _require(bool(offsets))
    lengths = lengths if len(lengths) == len(offsets) else [1] * len(offsets)
    if max(map(sum, zip(offsets, lengths, strict=True))) > reader.size:
        raise EOFError


_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_BMP_DEPTHS = (1, 4, 8, 16, 24, 32)
_BMP_PLAIN = (0, 3)
"""BI_RGB and BI_BITFIELDS: rows lie uncompressed, so their length is known."""


def bmp(reader: Reader) -> Header:
    """File header, picture header, and as many bytes as the rows take."""
    reader.skip(2)
    size = reader.uint(4, "<")
    reader.skip(4)
    start, header = reader.uint(4, "<"), reader.uint(4, "<")
    _require(header in _BMP_HEADERS)
    field = 2 if header == 12 else 4
    width, height = reader.uint(field, "<"), reader.uint(field, "<")
    if height >= 1 << 31:  # negative: rows from top to bottom
        height = (1 << 32) - height
    reader.skip(2)
    depth = reader.uint(2, "<")
    packing = 0 if header == 12 else reader.uint(4, "<")
    _require(depth in _BMP_DEPTHS)
    rows = (width * depth + 31) // 32 * 4 * height if packing in _BMP_PLAIN else 0
    if max(size, start + rows) > reader.size:
        raise EOFError
    return _header("image/bmp", width, height)


_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"}


def bmff(reader: Reader) -> Header:
    """AVIF or HEIF: top-level boxes to the end of the file, ISO/IEC 14496-12 §4.2."""
    brands: set[bytes] = set()
    meta, data = b"", False
    while reader.at < reader.size:
        length, kind = _box(reader)
        reader.count(0 if kind in (b"mdat", b"moov") else length)
        start = reader.at
        if kind == b"ftyp":
            body = reader.take(length)
            brands = {body[at : at + 4] for at in (0, *range(8, len(body), 4))}
        elif kind == b"meta":
            meta = reader.take(length)
        elif kind == b"mdat":
            data = True
            _refuse_zero_tail(reader, start, length, None, 0)
        reader.seek(start)
        reader.skip(length)
    if not brands & (_AVIF_BRANDS | _HEIF_BRANDS):
        raise errors.UnsupportedFormat("The file is a film or another container, no picture.")
    _require(bool(meta) and data)
    size, turned = _bmff_size(meta)
    if brands & _AVIF_BRANDS:
        return _header("image/avif", *size, turned)
    size = _aperture(meta) or size
    return _header("image/heif", *(size[::-1] if turned >= 5 else size))


def _box(reader: Reader) -> tuple[int, bytes]:
    """Length of the body and type of the box that begins here."""
    at, length, kind = reader.at, reader.uint(4), reader.take(4)
    _require(kind.isascii() and kind.decode("ascii").isprintable())
    if length == 1:
        length = reader.uint(8)
    elif length == 0:
        length = reader.size - at
    head = reader.at - at
    _require(length >= head)
    return length - head, kind


def _bmff_size(meta: bytes) -> tuple[tuple[int, int], int]:
    """Size and EXIF orientation of the main picture.

    Where the file does not say which of its pictures that is, the largest `ispe` is the main
    one's: thumbnails and the tiles of a grid are smaller, alpha is equal (ISO/IEC 23008-12
    §6.5.3).
    """
    properties = _main_properties(meta[4:])
    sizes = [
        (int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big"))
        for kind, body in properties
        if kind == b"ispe" and len(body) >= 12
    ]
    _require(bool(sizes))
    turns = {kind: body[0] for kind, body in properties if kind in (b"irot", b"imir") and body}
    angle = turns.get(b"irot", 0) & 3
    axis = turns[b"imir"] & 1 if b"imir" in turns else None
    return max(sizes, key=lambda size: size[0] * size[1]), _BMFF_TURNS[angle, axis]


def _aperture(meta: bytes) -> tuple[int, int] | None:
    """What HEIF decoders leave of the main picture: encoders pad it to whole blocks.

    `clap` holds width and height as fractions (ISO/IEC 14496-12 §12.1.4).
    """
    body = dict(_main_properties(meta[4:])).get(b"clap", b"")
    numbers = [int.from_bytes(body[at : at + 4], "big") for at in range(0, 16, 4)]
    if len(body) < 32 or 0 in numbers:
        return None
    return round(numbers[0] / numbers[1]), round(numbers[2] / numbers[3])


def _main_properties(meta: bytes) -> list[tuple[bytes, bytes]]:
    """Type and body of what describes the main picture; of all pictures where none is named."""
    described = _child(meta, b"iprp")
    properties = list(_boxes(_child(described, b"ipco")))
    named = _child(meta, b"pitm")[4:]
    wanted = _associated(_child(described, b"ipma"), int.from_bytes(named, "big")) if named else []
    return [properties[n - 1] for n in wanted if 0 < n <= len(properties)] or properties


def _associated(ipma: bytes, item: int) -> list[int]:
    """Numbers, from 1, of an item's properties (ISO/IEC 23008-12 §9.3.1)."""
    wide_ids, wide_numbers = ipma[:1] > b"\0", bool(ipma[3:4] and ipma[3] & 1)
    at, id_bytes, bytes_each = 8, 4 if wide_ids else 2, 2 if wide_numbers else 1
    while at + id_bytes < len(ipma):
        found = int.from_bytes(ipma[at : at + id_bytes], "big")
        at += id_bytes + 1
        end = at + ipma[at - 1] * bytes_each
        if found == item:
            numbers = [ipma[n : n + bytes_each] for n in range(at, end, bytes_each)]
            most = (1 << (8 * bytes_each - 1)) - 1  # the first bit says "essential"
            return [int.from_bytes(number, "big") & most for number in numbers]
        at = end
    return []


_BMFF_TURNS = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
    (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
}  # fmt: skip
"""EXIF orientation of `irot` (quarter turns anticlockwise) followed by `imir` (axis)."""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        _require(8 <= length <= len(data) - at)
        yield data[at + 4 : at + 8], data[at + 8 : at + length]
        at += length


def _child(data: bytes, wanted: bytes) -> bytes:
    return next((body for kind, body in _boxes(data) if kind == wanted), b"")
