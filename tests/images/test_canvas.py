"""The canvas: sides, areas, ratios, and the way there and back."""

from __future__ import annotations

import importlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from tests.images import samples
from vellumd import errors
from vellumd.images import Canvas, reference_size

AREA = 1024 * 1024
AREAS = st.sampled_from([128 * 128, 256 * 256, AREA])
SIZES = st.tuples(st.integers(16, 6000), st.integers(16, 6000))
ORDINARY = st.tuples(st.integers(64, 4000), st.floats(1 / 3, 3)).map(
    lambda s: (s[0], max(round(s[0] * s[1]), 16))
)


@settings(max_examples=60, deadline=None)
@given(picture=SIZES, area=AREAS)
def test_match_keeps_its_promises(picture: tuple[int, int], area: int) -> None:
    """Sides are multiples of 32 within the area, the picture lies inside, undistorted."""
    canvas = Canvas.plan("match", [picture], area)
    assert canvas.width % 32 == canvas.height % 32 == 0
    assert canvas.width * canvas.height <= area
    assert canvas.reference == (canvas.width, canvas.height)
    assert canvas.output == picture
    assert canvas.box is not None
    left, top, right, bottom = canvas.box
    assert 0 <= left < right <= canvas.width
    assert 0 <= top < bottom <= canvas.height
    assert right - left == canvas.width or bottom - top == canvas.height
    scale = min(canvas.width / picture[0], canvas.height / picture[1])
    assert abs((right - left) - picture[0] * scale) <= 0.51
    assert abs((bottom - top) - picture[1] * scale) <= 0.51
    enlargement = max(picture[0] / (right - left), picture[1] / (bottom - top))
    assert canvas.enlarged == (enlargement > 1.5)


@settings(max_examples=60, deadline=None)
@given(picture=ORDINARY)
def test_match_wastes_little(picture: tuple[int, int]) -> None:
    """For ordinary ratios the picture fills 95 % of a canvas that uses 85 % of the area."""
    canvas = Canvas.plan("match", [picture], AREA)
    assert canvas.box is not None
    left, top, right, bottom = canvas.box
    used = canvas.width * canvas.height
    assert (right - left) * (bottom - top) >= 0.95 * used
    assert used >= 0.85 * AREA


@pytest.mark.parametrize(
    ("picture", "area", "canvas"),
    [
        ((1024, 1024), AREA, (1024, 1024)),
        ((16, 16), AREA, (1024, 1024)),
        ((4000, 3000), AREA, (1152, 864)),  # exact 4:3 beats the larger 1184x864
        ((3000, 4000), AREA, (864, 1152)),
        ((736, 1011), AREA, (864, 1184)),
        ((128, 128), 128 * 128, (128, 128)),
        ((96, 64), 128 * 128, (160, 96)),
    ],
)
def test_known_canvases(picture: tuple[int, int], area: int, canvas: tuple[int, int]) -> None:
    """Common sizes get the canvas one expects."""
    planned = Canvas.plan("match", [picture], area)
    assert (planned.width, planned.height) == canvas


def test_only_image_1_counts_for_match() -> None:
    """The other pictures change nothing."""
    assert Canvas.plan("match", [(800, 600)], AREA) == Canvas.plan(
        "match", [(800, 600), (16, 900)], AREA
    )


@settings(max_examples=40, deadline=None)
@given(picture=SIZES, megapixels=st.floats(0.01, 16).map(lambda n: round(n, 3)))
def test_fit_caps_the_output(picture: tuple[int, int], megapixels: float) -> None:
    """The result has at most N megapixels at the same ratio, and is never enlarged for it."""
    canvas = Canvas.plan(f"fit:{megapixels}", [picture], AREA)
    width, height = canvas.output
    assert width * height <= max(megapixels * 1e6, max(picture))
    if picture[0] * picture[1] <= megapixels * 1e6:
        assert canvas.output == picture
    else:
        assert (width + 1) * (height + 1) > megapixels * 1e6
    same = Canvas.plan("match", [picture], AREA)
    assert (canvas.width, canvas.height, canvas.box) == (same.width, same.height, same.box)


def _stock(area: int, ratio: float) -> tuple[int, int]:
    """What diffusers computes; its own function is compared in the engine's tests."""
    width = math.sqrt(area * ratio)
    height = width / ratio
    return round(width / 32) * 32, round(height / 32) * 32


@settings(max_examples=60, deadline=None)
@given(first=SIZES, last=SIZES)
def test_auto_is_stock(first: tuple[int, int], last: tuple[int, int]) -> None:
    """`auto` takes the last picture's ratio, pads nothing and resizes nothing."""
    canvas = Canvas.plan("auto", [first, last], AREA)
    size = _stock(AREA, last[0] / last[1])
    assert (canvas.width, canvas.height) == canvas.output == size
    assert canvas.reference == _stock(AREA, first[0] / first[1])
    assert canvas.box is None
    assert not canvas.enlarged


def test_stock_size_of_2511() -> None:
    """The example of the model's notes: 736x1011 becomes 864x1216, its vision copy 320x448."""
    assert reference_size(736, 1011, AREA) == (864, 1216)
    assert reference_size(736, 1011, 384 * 384) == (320, 448)


def test_reference_size_is_never_zero() -> None:
    """A side that the stock rounding would lose keeps one unit."""
    assert reference_size(16_384, 16, 128 * 128) == (4096, 32)


def test_reference_size_equals_diffusers() -> None:
    """Every ratio gives what the installed stock pipeline computes."""
    stock = importlib.import_module(
        "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
    ).calculate_dimensions
    for width in range(100, 3000, 171):
        for height in range(100, 3000, 133):
            for area in (AREA, 384 * 384, 128 * 128):
                assert reference_size(width, height, area) == stock(area, width / height)


@pytest.mark.parametrize(
    ("size", "canvas"), [("480x333", (480, 320)), ("16x16", (16, 16)), ("1024x768", (1024, 768))]
)
def test_wanted_size_is_floored(size: str, canvas: tuple[int, int]) -> None:
    """`WxH` is floored to multiples of 16 and comes out in that size."""
    planned = Canvas.plan(size, [(700, 500)], AREA)
    assert (planned.width, planned.height) == planned.output == canvas


@pytest.mark.parametrize("size", ["", "fit:0", "15x64", "9999x16", "huge", "fit:", "64x"])
def test_bad_sizes_are_refused(size: str) -> None:
    """What is no size is `bad_size`."""
    with pytest.raises(errors.BadSize):
        Canvas.plan(size, [(64, 64)], AREA)


@settings(max_examples=25, deadline=None)
@given(
    picture=st.tuples(st.integers(40, 700), st.integers(40, 700)),
    size=st.sampled_from(["match", "fit:0.05", "auto", "320x240"]),
)
def test_there_and_back(picture: tuple[int, int], size: str) -> None:
    """`fit` gives what the model expects; a model that changes nothing returns the picture."""
    canvas = Canvas.plan(size, [picture], 256 * 256)
    image = samples.photo(picture)
    fitted = canvas.fit(image)
    assert fitted.size == canvas.reference
    made = fitted if canvas.box else fitted.resize((canvas.width, canvas.height))
    result = canvas.finish(made)
    assert result.size == canvas.output
    expected = image.resize(canvas.output, Image.Resampling.LANCZOS)
    assert max(ImageStat.Stat(ImageChops.difference(result, expected)).mean) < 6


def test_edges_are_replicated() -> None:
    """What the picture leaves of the canvas continues its border pixels."""
    canvas = Canvas(100, 60, (100, 60), (40, 30), (30, 20, 70, 50))
    image = samples.photo((40, 30))
    fitted = canvas.fit(image)
    assert fitted.crop(canvas.box).tobytes() == image.tobytes()
    for x, y in ((0, 35), (29, 35), (99, 25), (50, 0), (50, 59), (0, 0), (99, 59)):
        nearest = (min(max(x - 30, 0), 39), min(max(y - 20, 0), 29))
        assert fitted.getpixel((x, y)) == image.getpixel(nearest)
