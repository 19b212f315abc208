"""The gallery's sheet and the sample pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from vellumd.demo import exam, gallery
from vellumd.demo.scenes import SIDE
from vellumd.demo.world import KINDS


def test_samples_ship_as_drawn(tmp_path: Path) -> None:
    """The files beside the code are what the code draws, and small."""
    gallery.main(["--samples", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in gallery.FOLDER.iterdir()
    )
    for file in gallery.FOLDER.iterdir():
        with Image.open(file) as shipped, Image.open(tmp_path / file.name) as made:
            assert shipped.size == (SIDE, SIDE)
            assert np.array_equal(np.asarray(shipped), np.asarray(made))
        assert file.stat().st_size < 4000


def test_samples_can_be_read() -> None:
    """The circle, the square and the star also stand out on the backdrop."""
    shapes, backdrop, star = (gallery.SCENES[name] for name in ("shapes", "backdrop", "star"))
    for scene in (shapes, backdrop, star):
        assert scene.readable[0, scene.colour[scene.taken]].all()
    assert backdrop.readable[0, shapes.colour[shapes.taken]].all()
    assert backdrop.readable[0, star.colour[star.taken]].all()
    assert not (shapes.taken & star.taken).any()


def test_the_sheet_shows_results_and_admits_failures() -> None:
    """Each edit's result is on the sheet; a wrong one changes the caption alone."""
    questions = exam.draw(len(KINDS), 0)
    copies = exam.sit(questions, lambda pictures, prompt, seed: pictures[0])
    assert not copies.passed.any()
    passed = exam.Sitting(copies.kinds, ~copies.passed, copies.pictures, copies.seconds)
    sheets = [gallery.render(questions, sitting) for sitting in (copies, passed)]
    box = ImageChops.difference(*sheets).getbbox()
    assert box is not None
    rows = -(-len(KINDS) // gallery.COLUMNS)
    assert sheets[0].height == gallery.GAP + rows * (gallery.HEIGHT + 2 * gallery.GAP)
    first = np.asarray(sheets[0])[gallery.GAP + gallery.CAPTION :, gallery.GAP :]
    result = first[1 : SIDE - 1, SIDE + gallery.GAP + gallery.ARROW + 1 :][:, : SIDE - 2]
    assert np.array_equal(result, copies.pictures[0][1:-1, 1:-1])
