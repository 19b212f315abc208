"""Pictures made in code: whole ones of every format, and broken ones by name."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageCms

SIZE = (120, 80)
TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture whose corners differ, so that any turn or flip shows."""
    ramp = Image.linear_gradient("L").resize(size)
    picture = Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp))
    picture.paste((250, 20, 30), (0, 0, size[0] // 3, size[1] // 3))
    picture.paste((20, 30, 250), (size[0] * 2 // 3, 0, size[0], size[1] // 4))
    return picture


def noise(size: tuple[int, int]) -> Image.Image:
    """A picture that compresses badly, the same in every run."""
    width, height = size
    state, rows = 12345, bytearray()
    for _ in range(width * height * 3):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        rows.append(state >> 16 & 0xFF)
    return Image.frombytes("RGB", size, bytes(rows))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """`image` as a file of `format`."""
    file = io.BytesIO()
    image.copy().save(file, format, **options)  # Pillow leaves its settings on the picture
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """The picture in `data`, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def exif(orientation: int = 1) -> Image.Exif:
    """EXIF with an orientation, GPS, a maker's name and an exposure."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Maker"
    block[0x8769] = {0x829A: 0.5, 0x9286: b"ASCII\0\0\0old comment", 0x927C: b"note"}
    block[0x8825] = {1: "N", 2: (48.0, 12.0, 30.0)}
    return block


def profile(*, swapped: bool = False) -> bytes:
    """An sRGB profile; `swapped` exchanges red and blue, so that using it shows."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = bytes((7, 232, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))  # made on 2024-01-01
    if swapped:
        tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + data[131] * 12, 12)}
        red, blue = tags[b"rXYZ"] + 4, tags[b"bXYZ"] + 4
        data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
        data = data.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))
    return bytes(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of raw `rows` (filter bytes included) with `extra` chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A black RGB PNG, made without holding its pixels."""
    deflate, parts = zlib.compressobj(9), []
    row = bytes(1 + width * 3)
    for _ in range(height):
        parts.append(deflate.compress(row))
    parts.append(deflate.flush())
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")


def tiff_of_many_tags(blob: int, tags: int) -> bytes:
    """A small file whose `tags` all refer to the same `blob` bytes."""
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, blob, 8) for i in range(tags))
    directory = struct.pack("<H", tags) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + blob) + b"x" * blob + directory


def webp_chunks(data: bytes, *extra: bytes) -> bytes:
    """`data` (a WebP) with raw chunks behind its own."""
    body = data[8:] + b"".join(extra)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_with(segment: int, data: bytes, jpeg: bytes) -> bytes:
    """`jpeg` with one more segment at its beginning."""
    return jpeg[:2] + bytes((0xFF, segment)) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def gif() -> bytes:
    """Two frames of a GIF."""
    return encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)])


def _frames() -> dict[str, Any]:
    """Options that add a second frame, new each time: Pillow leaves settings on it."""
    return {"save_all": True, "append_images": [photo().rotate(180)]}


def whole() -> dict[str, bytes]:
    """Files that must be taken, by name."""
    picture = photo()
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(SIZE))
    jpeg = encoded(picture, "JPEG")
    return {
        **{name.lower(): encoded(picture, name) for name in TYPES},
        "png palette": encoded(picture.quantize(16), "PNG"),
        "png 1 bit": encoded(picture.convert("1"), "PNG"),
        "png alpha": encoded(alpha, "PNG"),
        "png animated": encoded(picture, "PNG", **_frames()),
        "jpeg gray": encoded(picture.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "jpeg progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg restarts": encoded(picture, "JPEG", restart_marker_blocks=2),
        "jpeg motion photo": jpeg + b"ftypmp42 and a film" * 99,
        "jpeg two pictures": encoded(picture, "MPO", **_frames()),
        "webp lossless": encoded(picture, "WEBP", lossless=True),
        "webp alpha": encoded(alpha, "WEBP"),
        "webp animated": encoded(picture, "WEBP", **_frames()),
        "webp flat": encoded(Image.new("RGB", (1500, 1000)), "WEBP"),
        "tiff deflated": encoded(picture, "TIFF", compression="tiff_adobe_deflate"),
        "tiff pages": encoded(picture, "TIFF", **_frames()),
        "tiff cmyk": encoded(picture.convert("CMYK"), "TIFF"),
        "avif alpha": encoded(alpha, "AVIF"),
        "avif flat": encoded(Image.new("RGB", (1500, 1000)), "AVIF", speed=10),
        "bmp palette": encoded(picture.quantize(16), "BMP"),
    }
