"""What goes along with pixels: kept from the source, or telling how they were made."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

_EXIF, _USER_COMMENT = ExifTags.IFD.Exif, ExifTags.Base.UserComment
_KEPT_TAGS = {
    *range(0x010D, 0x0111),  # document name, description, make, model
    *range(0x011A, 0x011C),  # resolution
    0x0128, 0x0131, 0x0132, 0x013B, 0x013C,  # its unit, software, time, artist, computer
    0x4746, 0x4749, 0x8298,  # rating, copyright
    *range(0x9C9B, 0x9CA0),  # title, comment, author, keywords, subject
}  # fmt: skip
"""Tags of the first directory that describe the picture and not its file. Orientation,
GPS and the thumbnail's directory are left out by not being here."""
_DROPPED_EXIF = {0x927C, 0xA005, 0xA002, 0xA003, _USER_COMMENT}
"""Maker note (offsets that moving breaks, and previews), interoperability, pixel size."""
_IPTC_TIFF, _IPTC_RESOURCE = 33723, 0x0404
_XMP_TIFF = 700

EXIF_HEAD = b"Exif\0\0"
"""What Pillow and JPEG have in front of an EXIF block."""
JPEG_SEGMENT_MAX = 65_533
"""Most bytes that one JPEG segment holds."""


@dataclass(frozen=True)
class Kept:
    """Metadata of an input that a result may carry on, each None where there is none.

    `exif` and `xmp` are without orientation, thumbnail and GPS. `icc` is the profile of
    an RGB file.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    icc: bytes | None = None

    @classmethod
    def of(cls, image: Image.Image) -> Kept:
        """The metadata of a loaded file; junk counts as none."""
        return cls(_clean_exif(image), _clean_xmp(image), _iptc(image), _icc(image))

    def without_icc(self) -> Kept:
        """The same without profile."""
        return dataclasses.replace(self, icc=None)

    def only(self, names: Container[str]) -> Kept:
        """The parts in `names`: what `output.keep` wants."""
        fields = {name: value for name, value in vars(self).items() if name in names}
        return Kept(**fields)


def _icc(image: Image.Image) -> bytes | None:
    icc = image.info.get("icc_profile")
    return icc if isinstance(icc, bytes) and icc else None


def _clean_exif(image: Image.Image) -> bytes | None:
    """A new EXIF block of the tags worth keeping."""
    clean = _new_exif()
    try:
        source = image.getexif()
        clean.update({tag: source[tag] for tag in source if tag in _KEPT_TAGS})
        details = source.get_ifd(_EXIF)
        kept = {tag: value for tag, value in details.items() if tag not in _DROPPED_EXIF}
        if kept:
            clean[_EXIF] = kept
        return clean.tobytes() if len(clean) else None
    except Exception:  # noqa: BLE001  Pillow raises whatever its parsers stumble over
        return None


def _new_exif() -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">"  # so that UTF-16 text is big-endian, as most readers assume
    return exif


_PRIVATE = r"(?:\w+:GPS\w*|tiff:Orientation|xmp:Thumbnails|xmpGImg:image)"
_PRIVATE_XMP = re.compile(
    rf"""\s{_PRIVATE}\s*=\s*(?:"[^"]*"|'[^']*')|<({_PRIVATE})\b[^>]*?(?:/>|>.*?</\1\s*>)""",
    re.DOTALL,
)
"""Attributes and elements of XMP that are dropped."""


def _clean_xmp(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp") or _tiff_tag(image, _XMP_TIFF)
    try:
        return _PRIVATE_XMP.sub("", bytes(xmp or b"").decode()).encode() or None
    except (UnicodeDecodeError, TypeError):
        return None


def _iptc(image: Image.Image) -> bytes | None:
    """IPTC-IIM records: TIFF has them in a tag, JPEG in a Photoshop resource."""
    resources = image.info.get("photoshop")
    found = resources.get(_IPTC_RESOURCE) if isinstance(resources, dict) else None
    found = found or _tiff_tag(image, _IPTC_TIFF)
    return found if isinstance(found, bytes) and found.startswith(b"\x1c") else None


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def iptc_segment(iptc: bytes) -> bytes:
    """A JPEG APP13 segment with `iptc`; empty if it does not fit into one."""
    resource = b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    if len(body) > JPEG_SEGMENT_MAX:
        return b""
    return b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body


def exif_with(exif: bytes | None, comment: str) -> bytes:
    """EXIF block `exif`, or a new one, with `comment` as UserComment; empty if neither."""
    if not comment:
        return exif or b""
    whole = _new_exif()
    if exif:
        whole.load(exif)
    details = dict(whole.get_ifd(_EXIF))
    whole[_EXIF] = {**details, _USER_COMMENT: b"UNICODE\0" + comment.encode("utf-16-be")}
    return whole.tobytes()


def canonical(info: Mapping[str, Any]) -> str:
    """`info` as JSON, the same bytes for equal values."""
    return json.dumps(info, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_PARAMETERS = (
    ("Steps", "steps"),
    ("Sampler", "scheduler"),
    ("CFG scale", "true_cfg_scale"),
    ("Seed", "seed"),
    ("Model", "model"),
    ("Preset", "preset"),
    ("Tier", "tier"),
    ("Loras", "loras"),
    ("Job", "job"),
)
"""Names in the text form that other tools read, and the keys of `info` they show."""
_NOTHING: tuple[object, ...] = (None, "", [], ())


def parameters(info: Mapping[str, Any]) -> str:
    """`info` in the text form of the Automatic1111 web UI, which galleries read."""
    lines = [str(info.get("prompt", ""))]
    if str(info.get("negative_prompt") or "").strip():
        lines.append(f"Negative prompt: {info['negative_prompt']}")
    shown = [(name, info.get(key)) for name, key in _PARAMETERS]
    facts = [f"{name}: {_quoted(value)}" for name, value in shown if value not in _NOTHING]
    if "width" in info and "height" in info:
        facts.append(f"Size: {info['width']}x{info['height']}")
    lines.append(", ".join(facts))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """A value as that form writes it: JSON where it holds a separator."""
    text = value if isinstance(value, str) else canonical(value)
    if isinstance(value, (list, tuple, dict)) or any(mark in text for mark in ',:\n"'):
        return json.dumps(text, ensure_ascii=False)
    return text
