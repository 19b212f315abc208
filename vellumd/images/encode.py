"""Pictures as files: a result with its metadata, and smaller copies of it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image, PngImagePlugin

from vellumd import errors
from vellumd.images import metadata
from vellumd.images.metadata import Kept
from vellumd.images.picture import FORMATS, Picture, flatten, from_srgb, reapply_alpha
from vellumd.models import ResolvedOutput

Format = Literal["png", "jpeg", "webp"]

_SAME: dict[str, Format] = {"image/png": "png", "image/webp": "webp"}
"""What `same` means; every other input becomes JPEG."""
_FULL_CHROMA = 90
"""From this JPEG quality on, colour keeps its full resolution."""
_WEBP_SIDE = 16_383
_QUALITIES = (90, 80, 70, 60, 50, 40)
"""Steps down when a picture has to fit into a number of bytes; below, it gets smaller."""
_SMALLEST = 64
"""Pixels of the shorter side below which a smaller copy is of no use."""


def encode(
    image: Image.Image, output: ResolvedOutput, source: Picture, info: Mapping[str, Any]
) -> tuple[bytes, str]:
    """A result as a file: its bytes and media type; equal arguments give equal bytes.

    `image` is RGB in sRGB, or RGBA; `source` is image 1. `info` is what `embed` writes:
    `job` (the id) and, for `full`, JSON values such as `prompt`, `negative_prompt`,
    `steps`, `true_cfg_scale`, `seed`, `model`, `scheduler`, `preset`, `tier`, `loras`;
    `width` and `height` are added. JPEG has no alpha: it is flattened on white.
    Raises `ResultTooLarge` for a WebP with a side over 16383 pixels.
    """
    format = _SAME.get(source.type, "jpeg") if output.format == "same" else output.format
    if output.alpha == "reapply" and source.alpha is not None and image.mode == "RGB":
        image = reapply_alpha(image, source.alpha)
    kept = source.kept.only(output.keep)
    if kept.icc:
        image = _profiled(image, kept.icc)
    facts = {"width": image.width, "height": image.height, **info}
    extra = _EXTRAS[format](kept, output.embed, facts)
    return _write(image, format, output.quality, **extra), f"image/{format}"


def _profiled(image: Image.Image, icc: bytes) -> Image.Image:
    if image.mode == "RGBA":
        return reapply_alpha(from_srgb(image.convert("RGB"), icc), image.getchannel("A"))
    return from_srgb(image, icc)


def _write(image: Image.Image, format: Format, quality: int, **extra: Any) -> bytes:
    """The file's bytes; `extra` are Pillow's options for its metadata."""
    if format == "webp" and max(image.size) > _WEBP_SIDE:
        raise errors.ResultTooLarge(f"WebP holds at most {_WEBP_SIDE} pixels a side.")
    if format == "jpeg":
        image = _opaque(image)
        extra["subsampling"] = 0 if quality >= _FULL_CHROMA else 2  # 4:4:4 or 4:2:0
    file = io.BytesIO()
    image.save(file, format, quality=quality, **extra)
    return file.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return flatten(image.convert("RGB"), image.getchannel("A"))
    return image


def _told(embed: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `info` that `embed` lets out."""
    if embed == "full":
        return dict(info)
    return {"job": info["job"]} if embed == "id" and "job" in info else {}


def _png_extra(kept: Kept, embed: str, info: Mapping[str, Any]) -> dict[str, Any]:
    text = PngImagePlugin.PngInfo()
    if told := _told(embed, info):
        if embed == "full":
            text.add_itxt("parameters", metadata.parameters(info))
        text.add_itxt("vellumd", metadata.canonical(told))
    if kept.xmp:
        text.add_itxt("XML:com.adobe.xmp", kept.xmp.decode())
    if kept.iptc:
        # the form of ImageMagick and ExifTool; PNG has none of its own
        dump = f"\niptc\n{len(kept.iptc):8}\n{kept.iptc.hex()}\n"
        text.add_text("Raw profile type iptc", dump, zip=True)
    return {"pnginfo": text, "exif": kept.exif or b"", "icc_profile": kept.icc}


def _comment(told: dict[str, Any], embed: str) -> str:
    """UserComment: the text form with all of `told` as its last, quoted value."""
    if not told or embed != "full":
        return metadata.canonical(told) if told else ""
    rest = {key: value for key, value in told.items() if "prompt" not in key}
    quoted = metadata.canonical({"vellumd": metadata.canonical(rest)})[len('{"vellumd":') : -1]
    return f"{metadata.parameters(told)}, vellumd: {quoted}"


def _exif(kept: Kept, embed: str, info: Mapping[str, Any], most: int) -> bytes:
    """EXIF with as much as fits in `most` bytes: first the prompt goes, then the rest."""
    choices = [(kept.exif, embed), (kept.exif, "id"), (None, "id")]
    blocks = (metadata.exif_with(exif, _comment(_told(e, info), e)) for exif, e in choices)
    return next((block for block in blocks if len(block) <= most), b"")


def _jpeg_extra(kept: Kept, embed: str, info: Mapping[str, Any]) -> dict[str, Any]:
    most = metadata.JPEG_SEGMENT_MAX
    xmp = kept.xmp if kept.xmp and len(kept.xmp) < most - 64 else None
    return {
        "exif": _exif(kept, embed, info, most),
        "extra": metadata.iptc_segment(kept.iptc) if kept.iptc else b"",
        "icc_profile": kept.icc,
        "xmp": xmp,
    }


def _webp_extra(kept: Kept, embed: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """WebP has no place for IPTC."""
    return {
        "exif": _exif(kept, embed, info, 1 << 20),
        "icc_profile": kept.icc or b"",
        "xmp": kept.xmp or b"",
    }


_EXTRAS = {"png": _png_extra, "jpeg": _jpeg_extra, "webp": _webp_extra}


def derive(
    stored: Path | bytes,
    format: Format,
    quality: int | None = None,
    max_bytes: int | None = None,
    *,
    resize: bool = True,
    max_side: int | None = None,
) -> tuple[bytes, str]:
    """A stored picture in another format, or in at most `max_bytes`: bytes and media type.

    The stored bytes themselves where they already are what is wanted; else re-encoded
    at `quality` (95), then at lower qualities, then with fewer pixels (unless `resize` is
    false), the same bytes each time. With `max_side` no side has more pixels than that,
    from the start. Profile and EXIF stay. Raises `ResultTooLarge`.
    """
    opened = io.BytesIO(stored) if isinstance(stored, bytes) else stored.open("rb")
    with opened as file, Image.open(file, formats=FORMATS) as image:
        size = file.seek(0, 2)
        fits = size <= (max_bytes or size) and max(image.size) <= (max_side or max(image.size))
        if (image.format or "").lower() == format and quality is None and fits:
            file.seek(0)
            return file.read(), f"image/{format}"
        extra = _carried(image)
        if max_side is not None:
            image.thumbnail((max_side, max_side))  # decodes a JPEG no larger than needed
        image.load()
        if max_bytes is None:
            return _write(image, format, quality or 95, **extra), f"image/{format}"
        found = _within(image, format, quality or 95, max_bytes, extra, resize=resize)
        return found, f"image/{format}"


def _carried(image: Image.Image) -> dict[str, Any]:
    """Profile and EXIF of a stored result, as far as every format can hold them."""
    exif = image.info.get("exif") or b""
    if exif and not exif.startswith(metadata.EXIF_HEAD):  # WebP has it without
        exif = metadata.EXIF_HEAD + exif
    icc = image.info.get("icc_profile") or b""
    return {"exif": exif if len(exif) <= metadata.JPEG_SEGMENT_MAX else b"", "icc_profile": icc}


def _within(
    image: Image.Image,
    format: Format,
    quality: int,
    most: int,
    extra: dict[str, Any],
    *,
    resize: bool,
) -> bytes:
    """The first encoding of at most `most` bytes."""
    lower = [step for step in _QUALITIES if step < quality] if format != "png" else []
    for step in (quality, *lower):
        data = _write(image, format, step, **extra)
        if len(data) <= most:
            return data
    while resize and len(data) > most and min(image.size) > _SMALLEST:
        scale = min(0.9, 0.95 * math.sqrt(most / len(data)))
        scale = max(scale, _SMALLEST / min(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        data = _write(image, format, lower[-1] if lower else quality, **extra)
    if len(data) > most:
        raise errors.ResultTooLarge(f"The result does not fit into {most} bytes.")
    return data
