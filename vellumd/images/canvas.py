"""The canvas: which size the model works in, and the way there and back for image 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from vellumd.images.resize import Size, resized
from vellumd.models import check_size

UNIT = 32
"""Canvas sides are multiples of this: what the stock pipeline rounds to."""
TOKEN = 16
"""Sides of a wanted size are floored to this: one token covers 16x16 pixels."""
ENLARGED = 1.5
"""Enlarging by more than this per side is worth a warning."""
FULL = 0.9
"""Share of the best resolution that a canvas of a truer ratio may cost at most."""


def reference_size(width: int, height: int, area: int) -> Size:
    """The size to which the stock pipeline stretches a reference of that ratio.

    `calculate_dimensions` of diffusers' QwenImageEditPlusPipeline; a side never becomes
    0 here.
    """
    ratio = width / height
    wide = math.sqrt(area * ratio)
    return (
        max(round(wide / UNIT), 1) * UNIT,
        max(round(wide / ratio / UNIT), 1) * UNIT,
    )


@dataclass(frozen=True)
class Canvas:
    """The picture that the model makes, and how image 1 maps to it and back.

    `width` and `height` are the canvas in pixels, `reference` is the size at which the
    model sees image 1, `output` that of the result. `box` (left, top, right, bottom) is
    where image 1 lies in the canvas; None: it is stretched, as the stock pipeline does.
    """

    width: int
    height: int
    reference: Size
    output: Size
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def plan(cls, size: str, pictures: Sequence[Size], area: int) -> Canvas:
        """The canvas for `size` (`match`, `auto`, `fit:N`, `WxH`).

        `pictures` are the inputs' upright sizes, `area` the model's canvas in pixels.
        Raises `BadSize`.
        """
        check_size(size)
        first = pictures[0]
        if size == "match":
            return cls._fitted(first, first, area)
        if size.startswith("fit:"):
            return cls._fitted(first, _capped(first, float(size[4:]) * 1e6), area)
        if size == "auto":
            canvas = reference_size(*pictures[-1], area)
        else:
            width, height = (int(side) // TOKEN * TOKEN for side in size.split("x"))
            canvas = (width, height)
        return cls(*canvas, reference_size(*first, area), canvas)

    @classmethod
    def _fitted(cls, picture: Size, output: Size, area: int) -> Canvas:
        width, height = _best_canvas(picture, area)
        scale = _scale(picture, (width, height))
        wide = min(max(round(picture[0] * scale), 1), width)
        high = min(max(round(picture[1] * scale), 1), height)
        left, top = (width - wide) // 2, (height - high) // 2
        box = (left, top, left + wide, top + high)
        return cls(width, height, (width, height), output, box)

    @property
    def enlarged(self) -> bool:
        """Whether the result is enlarged by more than `ENLARGED` per side."""
        if self.box is None:
            return False
        left, top, right, bottom = self.box
        return max(self.output[0] / (right - left), self.output[1] / (bottom - top)) > ENLARGED

    def fit(self, image: Image.Image) -> Image.Image:
        """Image 1 (RGB, upright) as the model sees it; its edges fill what it leaves."""
        if self.box is None:
            return resized(image, self.reference)
        left, top, right, bottom = self.box
        return _replicated(
            resized(image, (right - left, bottom - top)), (self.width, self.height), (left, top)
        )

    def finish(self, result: Image.Image) -> Image.Image:
        """The model's picture, of the canvas' size, as it leaves: of size `output`."""
        cropped = result.crop(self.box) if self.box else result
        return resized(cropped, self.output)


@lru_cache(64)
def _best_canvas(picture: Size, area: int) -> Size:
    """The canvas with the ratio nearest to the picture's, then the larger.

    Only canvases in which the picture keeps `FULL` of the best resolution count: an
    exact ratio alone could mean a canvas of a few pixels. Kept, since thousands are
    compared, 4 ms for each edit.
    """
    canvases = list(_canvases(area))
    best = max(_scale(picture, canvas) for canvas in canvases)
    full = [canvas for canvas in canvases if _scale(picture, canvas) ** 2 >= FULL * best**2]
    ratio = picture[0] / picture[1]
    return min(full, key=lambda c: (round(abs(math.log(c[0] / c[1] / ratio)), 9), -c[0] * c[1]))


def _canvases(area: int) -> Iterator[Size]:
    units = max(area // UNIT**2, 1)
    for wide in range(1, units + 1):
        for high in range(1, units // wide + 1):
            yield wide * UNIT, high * UNIT


def _scale(picture: Size, canvas: Size) -> float:
    return min(canvas[0] / picture[0], canvas[1] / picture[1])


def _capped(size: Size, pixels: float) -> Size:
    """`size` reduced to at most `pixels`, at the same ratio."""
    width, height = size
    scale = math.sqrt(pixels / (width * height))
    if scale >= 1:
        return size
    # 2695 times a scale of 1000/2695 is a little less than 1000 in floating point.
    return max(int(width * scale + 1e-6), 1), max(int(height * scale + 1e-6), 1)


def _replicated(image: Image.Image, size: Size, at: Size) -> Image.Image:
    """`image` at `at` in a picture of `size`, its border pixels repeated outwards."""
    if image.size == size:
        return image
    (width, height), (left, top) = size, at
    right, bottom = left + image.width, top + image.height
    whole = Image.new(image.mode, size)
    whole.paste(image, at)
    for edge, room in (
        ((left, top, left + 1, bottom), (0, top, left, bottom)),
        ((right - 1, top, right, bottom), (right, top, width, bottom)),
        ((0, top, width, top + 1), (0, 0, width, top)),
        ((0, bottom - 1, width, bottom), (0, bottom, width, height)),
    ):
        space = (room[2] - room[0], room[3] - room[1])
        if all(space):
            whole.paste(whole.crop(edge).resize(space, Image.Resampling.NEAREST), room[:2])
    return whole
