"""What a picture file is, told without decoding it: format, size, wholeness.

No decoder sees a byte here, so intake costs neither memory nor trust: the daemon runs
this for every upload, the engine before every decode.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

from vellumd import errors
from vellumd.images import containers
from vellumd.images.containers import Header
from vellumd.images.reader import Reader
from vellumd.settings import Limits

DECODABLE = 178_956_970
"""Pixels beyond which Pillow refuses to decode, whatever the limits say."""

_HEAD = 12
_OTHERS = (
    (b"GIF8", "GIF"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or other XML"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\1\0", "ICO"),
    (b"SIMPLE", "FITS"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
)
"""Beginnings of formats that people send and vellumd does not open."""


@cache
def heif_readable() -> bool:
    """Whether the extra that decodes HEIF is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def _walker(head: bytes) -> Callable[[Reader], Header]:
    """The function that knows this format; raises `UnsupportedFormat`."""
    if head.startswith(containers.PNG_SIGNATURE):
        return containers.png
    if head.startswith(b"\xff\xd8\xff"):
        return containers.jpeg
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return containers.webp
    if head[:4] in (b"II*\0", b"MM\0*"):
        return containers.tiff
    if head[:2] == b"BM":
        return containers.bmp
    if head[4:8] == b"ftyp":
        return containers.bmff
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    name = next((name for start, name in _OTHERS if text.startswith(start)), None)
    raise errors.UnsupportedFormat(
        f"{name} is not a format that vellumd opens." if name else "The file is not a picture."
    )


def inspect(path: Path, limits: Limits) -> Header:
    """Format and size of the picture in `path`, which is whole and within `limits`.

    Reads the file in small pieces and decodes no pixel. Raises `UnsupportedFormat`,
    `BadImage` (cut off, broken, or a side below `min_side`) or `ImageTooLarge`.
    """
    with path.open("rb") as file:
        return inspect_file(file, limits)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inspect_file(file: BinaryIO, limits: Limits) -> Header:
    """As `inspect`, of an open file or of bytes in memory."""
    reader = Reader(file)
    head = file.read(_HEAD)
    if len(head) < _HEAD:
        raise errors.BadImage("The file is empty or cut off.")
    walk = _walker(head)
    reader.seek(0)
    try:
        header = walk(reader)
    except EOFError:
        raise errors.BadImage("The picture's file is cut off.") from None
    _check_format(header)
    _check_size(header, limits)
    return header


def _check_format(header: Header) -> None:
    if header.type == "image/heif" and not heif_readable():
        raise errors.UnsupportedFormat("HEIF is not read without the heif extra.")


def _check_size(header: Header, limits: Limits) -> None:
    width, height = header.width, header.height
    if min(width, height) < limits.min_side:
        raise errors.BadImage(
            f"The picture is {width}x{height} pixels; each side must have {limits.min_side}."
        )
    pixels = min(limits.max_pixels, DECODABLE)
    if max(width, height) > limits.max_side or width * height > pixels:
        raise errors.ImageTooLarge(f"The picture is {width}x{height} pixels.")
