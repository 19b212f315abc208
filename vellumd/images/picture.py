"""A decoded picture: upright sRGB pixels, its alpha, and what may be kept of the file."""

from __future__ import annotations

import importlib
import io
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, ImageCms

from vellumd import errors
from vellumd.images.containers import Header
from vellumd.images.header import heif_readable, inspect
from vellumd.images.metadata import Kept
from vellumd.settings import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP")
"""The only decoders that are ever asked; Pillow's others had CVEs."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each EXIF orientation upright (EXIF 2.32 §4.6.4)."""


@dataclass(frozen=True)
class Picture:
    """One input as the engine uses it.

    `image` is mode RGB in sRGB, upright; `alpha` is mode L of the same size, None where
    all is opaque. `size` is the file's (width, height) upright, also where a JPEG was
    decoded smaller. `type` is the file's media type.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    size: tuple[int, int] = (0, 0)
    type: str = "image/png"
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        if self.size == (0, 0):
            object.__setattr__(self, "size", self.image.size)

    @property
    def flat(self) -> Image.Image:
        """The picture without transparency, as a model needs it: on white."""
        return flatten(self.image, self.alpha)


def load(path: Path, limits: Limits | None = None, target: int | None = None) -> Picture:
    """Decode the picture in `path` to its last row.

    The first frame of an animation counts. A JPEG may be decoded smaller where `target`
    pixels on the shorter side are enough. Raises as `inspect` does, and `BadImage` for
    pixels that cannot be decoded.
    """
    header = inspect(path, limits or Limits())
    with path.open("rb") as file:
        try:
            return _decode(file, header, target)
        except (errors.VellumError, MemoryError):
            raise
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            raise errors.BadImage("The picture cannot be decoded.") from error


def _decode(file: io.BufferedReader, header: Header, target: int | None) -> Picture:
    image = Image.open(file, formats=_formats(header))
    if image.size != header.stored:
        raise errors.BadImage("The picture's file contradicts itself about its size.")
    if target:
        image.draft(None, (target, target))
    image.load()
    kept = Kept.of(image)
    colour, alpha = _split(image)
    colour, kept = _to_srgb(colour, kept)
    if header.orientation != 1:
        turn = _TURNS[header.orientation]
        colour = colour.transpose(turn)
        alpha = alpha and alpha.transpose(turn)
    colour.info.clear()
    return Picture(colour, alpha, (header.width, header.height), header.type, kept)


def _formats(header: Header) -> tuple[str, ...]:
    if header.type == "image/heif" and heif_readable():
        importlib.import_module("pillow_heif").register_heif_opener()
        return ("HEIF",)
    return FORMATS


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB or CMYK, and alpha where not all is opaque."""
    if image.mode.startswith("I"):
        return _to_8_bits(image), None
    if not image.has_transparency_data:
        return image.convert(_PLAIN.get(image.mode, "RGB")), None
    for premultiplied, straight in (("La", "LA"), ("RGBa", "RGBA")):
        image = image.convert(straight) if image.mode == premultiplied else image
    image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    alpha = image.getchannel("A")
    opaque = alpha.getextrema() == (255, 255)
    return image.convert("L" if image.mode == "LA" else "RGB"), None if opaque else alpha


_PLAIN = {"1": "L", "L": "L", "CMYK": "CMYK"}
"""Modes that are kept until the colour profile was applied; all others become RGB."""


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as mode L: the high byte; Pillow's own conversion clips at 255."""
    return image.convert("I").point([value >> 8 for value in range(65_536)], "L")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


def _to_srgb(image: Image.Image, kept: Kept) -> tuple[Image.Image, Kept]:
    """`image` in mode RGB and sRGB; a junk profile, or another mode's, is dropped."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(kept.icc or b""))
        if profile.profile.xcolor_space.strip() != _SPACES[image.mode]:
            return image.convert("RGB"), kept.without_icc()
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image, kept
        converted = convert(image, profile, _srgb())
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), kept.without_icc()
    return converted, kept if image.mode == "RGB" else kept.without_icc()


def convert(
    image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile
) -> Image.Image:
    """`image` from one profile's colours to another's, as mode RGB."""
    done = ImageCms.profileToProfile(
        image,
        source,
        target,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert done is not None  # only with inPlace
    return done


def from_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """RGB pixels in the colours of profile `icc`, which `load` has read."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    if ImageCms.getProfileDescription(profile).startswith("sRGB"):
        return image
    return convert(image, _srgb(), profile)


def flatten(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """`image` (RGB) on white where `alpha` (L, same size) lets it through."""
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def reapply_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """`image` as RGBA with `alpha`, scaled to its size."""
    if alpha.size != image.size:
        alpha = alpha.resize(image.size, Image.Resampling.BILINEAR)
    return Image.merge("RGBA", (*image.convert("RGB").split(), alpha))


def check_output(image: Image.Image) -> None:
    """Raise `BadOutput` for a black picture or one with values that are not numbers."""
    if image.mode == "F":  # their mean is no number if one of them is none
        mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        if not (isinstance(mean, float) and math.isfinite(mean)):
            raise errors.BadOutput("The engine made not-a-number values.")
    if not image.convert("RGB").getbbox():
        raise errors.BadOutput("The engine made a black picture.")
