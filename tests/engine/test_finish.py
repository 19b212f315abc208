"""Decoding before the engine: what is kept of it, and what a broken input ends."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.engine.support import encoded, picture
from vellumd import errors, images
from vellumd.engine import finish
from vellumd.settings import Limits


def test_only_image_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of sixteen large pictures holds one while it runs, and knows of all if they are
    transparent; each broken one is told by its number."""
    files = [tmp_path / f"{n}.png" for n in range(16)]
    for n, file in enumerate(files):
        image = picture(40, 30, n)
        if n % 5 == 0:
            image.putalpha(100)
        file.write_bytes(encoded(image))
    decoded, load = [], images.load

    def seen(*given: Any) -> images.Picture:
        made = load(*given)
        decoded.append(weakref.ref(made.image))
        return made

    monkeypatch.setattr(images, "load", seen)
    inputs = finish.decode(files, None, Limits())
    assert [n for n, transparent in enumerate(inputs.transparent) if transparent] == [0, 5, 10, 15]
    assert len(decoded) == 16
    alive = [image for image in (ref() for ref in decoded) if image is not None]
    assert alive == [inputs.first.image]
    for n in (15, 7, 0):
        files[n].write_bytes(files[n].read_bytes()[:-30])
        with pytest.raises(errors.BadImage, match=rf"^images\.{n}: "):
            finish.decode(files, None, Limits())
