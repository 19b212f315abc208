"""Masks: where a picture may change, and how the change is pasted back."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops, ImageFilter

from vellumd.images.picture import load
from vellumd.images.resize import resized
from vellumd.settings import Limits

FEATHER = 1 / 256
"""Radius of the soft edge as a share of the shorter side."""


def load_mask(path: Path, size: tuple[int, int], limits: Limits | None = None) -> Image.Image:
    """The mask in `path` as mode L of `size`: 255 where the picture may change.

    White may change. In a mask with varying transparency (as OpenAI's dialect has it)
    the transparent parts may change, whatever their colour. Raises as `load` does.
    """
    picture = load(path, limits)
    varies = picture.alpha is not None and len(set(picture.alpha.getextrema())) == 2
    if varies and picture.alpha is not None:
        mask = ImageChops.invert(picture.alpha)
    else:
        mask = picture.image.convert("L")
    # BOX keeps every pixel of an enlarged mask in its place: nothing leaks outside
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BOX)


def paste_back(original: Image.Image, result: Image.Image, mask: Image.Image) -> Image.Image:
    """`result`, scaled to `original`, through `mask` (L, size of `original`).

    The edge is feathered inwards only: where the mask is 0, every pixel is the original's.
    """
    return Image.composite(resized(result, original.size), original, _feathered(mask))


def _feathered(mask: Image.Image) -> Image.Image:
    """`mask` with an edge that rises from 0 over twice the radius.

    What is too thin for that keeps its hard edge: a stroke must not fade away.
    """
    radius = min(max(round(min(mask.size) * FEATHER), 1), 32)
    support = mask.point(lambda value: 255 if value else 0)
    core = ImageChops.invert(_grown(ImageChops.invert(support), radius))
    thin = ImageChops.subtract(support, _grown(core, 2 * radius))
    soft = core.filter(ImageFilter.BoxBlur(radius))
    return ImageChops.multiply(mask, ImageChops.lighter(soft, thin))


def _grown(mask: Image.Image, radius: int) -> Image.Image:
    """The pixels of a mask of 0 and 255, each grown to a square of `radius` around it.

    A box blur costs the same for every radius, a maximum filter does not.
    """
    for radii in ((radius, 0), (0, radius)):
        blurred = mask.filter(ImageFilter.BoxBlur(radii))
        mask = blurred.point(lambda value: 255 if value else 0)
    return mask
