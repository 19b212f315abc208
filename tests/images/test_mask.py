"""Masks: what they let through, and that nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw

from tests.images import samples
from vellumd import images

SIZE = (640, 480)
INSIDE, OUTSIDE = (320, 240), (20, 20)


def _blob() -> Image.Image:
    """A white ellipse, a thin stroke and a gray patch on black."""
    mask = Image.new("L", SIZE)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((200, 140, 440, 340), fill=255)
    draw.line((30, 400, 600, 460), fill=255, width=1)
    draw.rectangle((500, 50, 580, 120), fill=128)
    return mask


def _file(tmp_path: Path, mask: Image.Image, format: str = "PNG") -> Path:
    path = tmp_path / "mask"
    path.write_bytes(samples.encoded(mask, format))
    return path


def _with_alpha(alpha: Image.Image, colour: str = "black") -> Image.Image:
    picture = Image.new("RGB", alpha.size, colour)
    picture.putalpha(alpha)
    return picture


@pytest.mark.parametrize("kind", ["L", "RGB", "1", "RGBA opaque", "transparent", "half"])
def test_white_or_transparent_may_change(kind: str, tmp_path: Path) -> None:
    """Every kind of mask gives 255 inside and 0 outside."""
    blob = _blob().point(lambda value: 255 if value else 0)
    mask = {
        "transparent": lambda: _with_alpha(ImageChops.invert(blob)),
        "half": lambda: _with_alpha(ImageChops.invert(blob), "white"),
        "RGBA opaque": lambda: blob.convert("RGBA"),
    }.get(kind, lambda: blob.convert(kind))()
    loaded = images.load_mask(_file(tmp_path, mask), SIZE)
    assert loaded.mode == "L"
    assert [loaded.getpixel(at) for at in (INSIDE, OUTSIDE)] == [255, 0]


def test_constant_alpha_says_nothing(tmp_path: Path) -> None:
    """A mask of one transparency all over counts by its luminance."""
    mask = _blob().convert("RGBA")
    mask.putalpha(100)
    loaded = images.load_mask(_file(tmp_path, mask), SIZE)
    assert [loaded.getpixel(at) for at in (INSIDE, OUTSIDE)] == [255, 0]


def test_scaled_mask_does_not_leak(tmp_path: Path) -> None:
    """An enlarged mask lets nothing through outside of its enlarged pixels."""
    small = Image.new("L", (64, 48))
    small.paste(255, (20, 20, 40, 30))
    loaded = images.load_mask(_file(tmp_path, small), SIZE)
    assert loaded.size == SIZE
    assert loaded.getbbox() == (200, 200, 400, 300)


def test_outside_is_byte_identical() -> None:
    """Where the mask is 0, every pixel is the original's, for blobs and for noise."""
    original, result = samples.photo(SIZE), ImageChops.invert(samples.photo(SIZE))
    chance = random.Random(7)
    dots = Image.frombytes(
        "L", SIZE, bytes(chance.choice((0, 0, 0, 9, 255)) for _ in range(640 * 480))
    )
    for mask in (_blob(), dots, Image.new("L", SIZE)):
        pasted = images.paste_back(original, result, mask)
        changed = ImageChops.difference(pasted, original).convert("RGB")
        outside = mask.point(lambda value: 0 if value else 255)
        for band in changed.split():
            assert ImageChops.multiply(band, outside).getbbox() is None


def test_inside_is_the_result() -> None:
    """Deep inside the result shows, at the border it fades, strokes keep their strength."""
    original, result = Image.new("RGB", SIZE, "black"), Image.new("RGB", SIZE, "white")
    pasted = images.paste_back(original, result, _blob()).convert("L")
    assert pasted.getpixel(INSIDE) == 255
    edge = pasted.getpixel((201, 240))
    assert isinstance(edge, int)
    assert 0 < edge < 255
    assert pasted.crop((30, 395, 601, 470)).getextrema() == (0, 255)
    assert pasted.getpixel((540, 85)) == 128


def test_full_mask_replaces_all() -> None:
    """A mask that is white everywhere gives the result, up to the very border."""
    result = samples.photo(SIZE)
    pasted = images.paste_back(Image.new("RGB", SIZE), result, Image.new("L", SIZE, 255))
    assert pasted.tobytes() == result.tobytes()


def test_result_takes_the_original_size() -> None:
    """A result of the model's size is scaled to the original's."""
    pasted = images.paste_back(
        samples.photo(SIZE), Image.new("RGB", (320, 240), "red"), Image.new("L", SIZE, 255)
    )
    assert pasted.size == SIZE
    assert pasted.getpixel((639, 479)) == (255, 0, 0)
