"""Resizing by threads: Pillow's own bytes, whatever the sizes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vellumd.images import resize
from vellumd.images.resize import SMALL, STRIP, THREADS, resized

Size = tuple[int, int]
LARGE = [
    ((736, 1011), (862, 1184)),
    ((862, 1184), (736, 1011)),
    ((1500, 1301), (320, 448)),
    ((700, 601), (700, 433)),
    ((700, 601), (433, 601)),
    ((90_001, 3), (70_000, 5)),
    ((2, 150_001), (7, 200_000)),
]


def noise(size: Size, mode: str = "RGB") -> Image.Image:
    """Bands that have nothing in common."""
    bands = [Image.effect_noise(size, spread) for spread in range(30, 30 * len(mode) + 1, 30)]
    return Image.merge(mode, bands) if len(mode) > 1 else bands[0]


def plain(image: Image.Image, size: Size) -> bytes:
    return image.resize(size, Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(("of", "to"), LARGE, ids=str)
def test_large_ones(of: Size, to: Size) -> None:
    """To the byte: both sides or one, up or down, and where there are fewer rows than strips."""
    assert max(of[0] * of[1], to[0] * to[1]) >= SMALL
    image = noise(of)
    made = resized(image, to)
    assert (made.mode, made.size) == ("RGB", to)
    assert made.tobytes() == plain(image, to)


@settings(max_examples=60, deadline=None)
@given(of=st.tuples(*[st.integers(1, 90)] * 2), to=st.tuples(*[st.integers(1, 90)] * 2))
def test_any_sizes(of: Size, to: Size) -> None:
    """To the byte, also where strips are a pixel wide."""
    image = noise(of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "SMALL", 0)
        patch.setattr(resize, "STRIP", 500)
        assert resized(image, to).tobytes() == plain(image, to)


@pytest.mark.parametrize(("of", "to"), [((500, 2000), (450, 1800)), ((900, 900), (901, 899))])
def test_where_columns_come_first(of: Size, to: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """In some versions of Pillow, which rounds between the two: it does all of it."""
    image = noise(of)
    monkeypatch.setattr(resize, "ThreadPoolExecutor", None)
    assert resized(image, to).tobytes() == plain(image, to)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes(mode: str) -> None:
    """Pillow does it: RGBA is more to it than its bands."""
    image = noise((800, 700), mode)
    assert resized(image, (300, 200)).tobytes() == plain(image, (300, 200))


def test_what_has_the_size_already() -> None:
    """It is the same picture."""
    image = noise((800, 700))
    assert resized(image, image.size) is image


def test_strips_are_made_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads, of which none stays."""
    all_at_once, crop = threading.Barrier(THREADS, timeout=30), Image.Image.crop

    def met(image: Image.Image, *box: Any) -> Image.Image:
        all_at_once.wait()
        return crop(image, *box)

    before = threading.active_count()
    monkeypatch.setattr(Image.Image, "crop", met)
    resized(noise((862, 1184)), (736, 1011))
    assert threading.active_count() == before


def test_small_ones_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor cut anything."""
    monkeypatch.setattr(resize, "ThreadPoolExecutor", None)
    resized(noise((500, 500)), (400, 300))


def test_strips_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large picture no more than a few megabytes are there twice."""
    cut, crop = [], Image.Image.crop

    def told(image: Image.Image, *box: Any) -> Image.Image:
        part = crop(image, *box)
        cut.append(part.width * part.height)
        return part

    monkeypatch.setattr(Image.Image, "crop", told)
    resized(Image.new("RGB", (4000, 3000)), (400, 300))
    assert max(cut) <= STRIP and sum(cut) == 4000 * 3000 + 400 * 3000


def test_what_a_thread_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to whoever wants the picture."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "paste", full)
    with pytest.raises(MemoryError):
        resized(noise((862, 1184)), (736, 1011))
