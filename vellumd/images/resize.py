"""Lanczos resizing by several threads, to Pillow's bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from PIL import Image

Size = tuple[int, int]

THREADS = 4
"""For one picture; Pillow resizes without the GIL."""
SMALL = 512 * 512
"""Pixels; a smaller picture is made in milliseconds, and threads would save none."""
STRIP = 2**20
"""Most pixels of a strip. Each is a copy of what it is made of, and four are made at a time."""


def resized(image: Image.Image, size: Size) -> Image.Image:
    """`image` at `size` (width, height): what Pillow's own `resize` makes by Lanczos' filter.

    That one turns each row into one of the new width, then each column into one of the new
    height. No row needs another, and no column: strips come out as they do in the whole.
    """
    if image.size == size:
        return image
    pixels = max(image.width * image.height, size[0] * size[1])
    if image.mode != "RGB" or pixels < SMALL or not _rows_first(image.size, size):
        return image.resize(size, Image.Resampling.LANCZOS)
    image.load()  # before threads would, all at once
    strips = max(THREADS, -(-pixels // STRIP))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="resize") as threads:
        narrow = _one_way(image, (size[0], image.height), strips, threads)
        return _one_way(narrow, size, strips, threads)


def _rows_first(old: Size, new: Size) -> bool:
    """Whether every Pillow begins with rows; where much height is lost, 13 does with columns."""
    return old[1] - new[1] <= max(2 * (old[0] - new[0]), 0)


def _one_way(image: Image.Image, size: Size, strips: int, by: ThreadPoolExecutor) -> Image.Image:
    """`image` at `size`, one side of which is its own: that side is cut into `strips`."""
    made = Image.new("RGB", size)
    upright = size[0] == image.width

    def strip(start: int, end: int) -> None:
        old = (start, 0, end, image.height) if upright else (0, start, image.width, end)
        new = (start, 0, end, size[1]) if upright else (0, start, size[0], end)
        length = (end - start, size[1]) if upright else (size[0], end - start)
        made.paste(image.crop(old).resize(length, Image.Resampling.LANCZOS), new)

    side = image.width if upright else image.height
    edges = sorted({side * number // strips for number in range(strips + 1)})
    list(by.map(strip, edges[:-1], edges[1:]))  # raises what one of them raised
    return made
