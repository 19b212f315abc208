"""The verdict: what a good VAE does passes, what is wrong fails."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vellumd.demo import world
from vellumd.demo.scenes import SHAPES, Array, Scenes
from vellumd.demo.verdict import Judge
from vellumd.demo.world import KINDS, Edits

N = 8
JUDGE = Judge()


def drawn(kind: str) -> Edits:
    return world.draw(kind, N, np.random.default_rng(5))


def painted(scenes: Scenes) -> Array:
    return np.asarray(JUDGE.paint(scenes)[0])


def targets(edits: Edits) -> Iterator[tuple[int, Scenes]]:
    for row in range(len(edits)):
        yield row, edits.target[row : row + 1]


def passing(edits: Edits, make: Callable[[int, Scenes], Array | None]) -> float:
    """Share of edits whose answer still passes after `make`, of those that it makes: half at least,
    so that none fails for want of pictures."""
    made = [(row, make(row, target)) for row, target in targets(edits)]
    passed = [JUDGE.passes(picture, edits, row) for row, picture in made if picture is not None]
    assert len(passed) >= N / 2
    return float(np.mean(passed))


def blurred(picture: Array, radius: float) -> Array:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def compressed(picture: Array) -> Array:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.asarray(Image.open(buffer))


def noisy(picture: Array) -> Array:
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    return np.asarray(np.clip(picture + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
class TestRight:
    """Every right answer passes, also a little spoilt."""

    def test_every_answer_passes(self, kind: str) -> None:
        """All answers are accepted as they are."""
        edits = drawn(kind)
        for row in range(N // 4):
            for answer in JUDGE.paint(edits.answers(row)):
                assert JUDGE.passes(answer, edits, row)

    @pytest.mark.parametrize(
        "spoil",
        [lambda p: blurred(p, 0.7), lambda p: blurred(p, 1.3), compressed, noisy],
        ids=["soft", "softer", "jpeg", "noise"],
    )
    def test_a_good_codec_passes(self, kind: str, spoil: Callable[[Array], Array]) -> None:
        """Soft edges, compression and faint noise do not make an answer wrong."""
        assert passing(drawn(kind), lambda _, target: spoil(painted(target))) == 1


@pytest.mark.parametrize("kind", KINDS)
class TestWrong:
    """Whatever is wrong fails, sharp or soft."""

    @pytest.mark.parametrize("radius", [0, 1.0])
    def test_copies_fail(self, kind: str, radius: float) -> None:
        """Neither picture 1 nor any other input is an answer."""
        edits = drawn(kind)
        for scenes in edits.references:
            for row in range(N):
                copy = blurred(painted(scenes[row : row + 1]), radius)
                assert not JUDGE.passes(copy, edits, row)

    @pytest.mark.parametrize("radius", [0, 1.0])
    def test_a_missing_shape_fails(self, kind: str, radius: float) -> None:
        """Of every answer's shapes none may be missing, also where all else has changed."""

        def make(_: int, target: Scenes) -> Array | None:
            cells = np.flatnonzero(target.taken[0])
            return blurred(painted(target.clear(cells[:1])), radius) if len(cells) else None

        assert passing(drawn(kind), make) == 0

    @pytest.mark.parametrize("radius", [0, 1.0])
    def test_another_shape_fails(self, kind: str, radius: float) -> None:
        """A circle is no square, however soft and small."""

        def make(row: int, target: Scenes) -> Array | None:
            cells = np.flatnonzero(target.taken[0])[:1]
            if not len(cells):
                return None
            shape, size, colour = target.at(cells)
            other = (shape + 1 + row % (len(SHAPES) - 1)) % len(SHAPES)
            return blurred(
                painted(target.put(cells, shape=other, size=size, colour=colour)), radius
            )

        assert passing(drawn(kind), make) == 0

    def test_another_size_fails(self, kind: str) -> None:
        """A small shape is no large one."""

        def make(_: int, target: Scenes) -> Array | None:
            cells = np.flatnonzero(target.taken[0])[:1]
            if not len(cells):
                return None
            shape, size, colour = target.at(cells)
            return painted(target.put(cells, shape=shape, size=1 - size, colour=colour))

        assert passing(drawn(kind), make) == 0

    @pytest.mark.parametrize(("share", "right"), [(0.1, True), (0.35, False)])
    def test_the_ghost_of_picture_1_fails(self, kind: str, share: float, right: bool) -> None:
        """Of what was there before a third may not shine through."""
        edits = drawn(kind)

        def make(row: int, target: Scenes) -> Array:
            given = painted(edits.references[0][row : row + 1])
            mixed = painted(target) * (1 - share) + given * share
            return np.asarray(mixed.round().astype(np.uint8))

        passed = passing(edits, make)
        assert passed >= 0.75 if right else passed == 0

    def test_a_tint_fails(self, kind: str) -> None:
        """Nor may the whole picture be bluer than it should be."""

        def make(_: int, target: Scenes) -> Array:
            tint = np.array([0, 0, 40])
            picture = painted(target).astype(int)
            return np.asarray(np.where(picture > 127, picture - tint, picture + tint), np.uint8)

        assert passing(drawn(kind), make) == 0

    def test_a_faint_extra_shape_fails(self, kind: str) -> None:
        """A shape that nobody asked for is too much, be it 40 of 255 from its ground."""

        def make(_: int, target: Scenes) -> Array:
            free = np.flatnonzero(~target.taken[0])[:1]
            colour = np.flatnonzero(target.readable[0])[:1]
            bright = replace(target, gray=np.zeros(1, bool))
            more = painted(bright.put(free, shape=0, size=1, colour=colour)).astype(float)
            where = np.abs(more - painted(bright)).max(axis=-1, keepdims=True) > 8
            there = painted(target)
            darker = np.where(there > 127, there - 40.0, there + 40.0)
            return np.where(where, darker, there).astype(np.uint8)

        assert passing(drawn(kind), make) == 0

    def test_a_flat_picture_fails(self, kind: str) -> None:
        """Neither pink all over nor a picture of another size answers anything."""
        edits = drawn(kind)
        for row in range(N):
            pink = np.full((128, 128, 3), (255, 0, 255), np.uint8)
            assert not JUDGE.passes(pink, edits, row)
            assert not JUDGE.passes(np.zeros((64, 64, 3), np.uint8), edits, row)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"add", "elsewhere", "gray"}))
def test_another_place_fails(kind: str) -> None:
    """A shape belongs into its cell, unless the words leave the place open.

    Not so in gray, where two colours may be too alike to tell.
    """

    def make(_: int, target: Scenes) -> Array | None:
        cells = np.flatnonzero(target.taken[0])[:1]
        free = np.flatnonzero(~target.taken[0])[:1]
        return painted(target.move(cells, free)) if len(cells) else None

    assert passing(drawn(kind), make) == 0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"another", "gray"}))
def test_another_colour_fails(kind: str) -> None:
    """A shape of another colour is wrong, unless the words leave the colour open."""

    def make(_: int, target: Scenes) -> Array | None:
        cells = np.flatnonzero(target.taken[0])[:1]
        if not len(cells):
            return None
        shape, size, colour = target.at(cells)
        fit = target.readable[0].copy()
        fit[colour] = False
        return painted(target.put(cells, shape=shape, size=size, colour=np.flatnonzero(fit)[0]))

    assert passing(drawn(kind), make) == 0


@pytest.mark.parametrize("kind", ["move", "elsewhere"])
def test_a_ghost_fails(kind: str) -> None:
    """A shape that has moved must be gone from where it was."""
    edits = drawn(kind)

    def ghost(row: int, target: Scenes) -> Array:
        given = edits.references[0][row : row + 1]
        left = np.flatnonzero((given.taken & ~target.taken)[0])
        shape, size, colour = given.at(left)
        return painted(target.put(left, shape=shape, size=size, colour=colour))

    assert passing(edits, ghost) == 0


def test_another_colours_old_one_fails() -> None:
    """Of the colours left open, the old one is none."""
    edits = drawn("another")
    assert passing(edits, lambda row, _: painted(edits.references[0][row : row + 1])) == 0


def test_two_shapes_added_fail() -> None:
    """One shape was asked for: each place alone is right, two at once are not."""
    edits = drawn("add")

    def twice(row: int, target: Scenes) -> Array:
        free = np.flatnonzero(~target.taken[0])[-1:]
        shape, size, colour = target.at(edits.cell[row : row + 1])
        return painted(target.put(free, shape=shape, size=size, colour=colour))

    assert passing(edits, twice) == 0


@pytest.mark.parametrize(("pixels", "right"), [(1, True), (4, False)])
def test_a_shifted_picture(pixels: int, right: bool) -> None:
    """One pixel aside is forgiven, four are not."""
    edits = drawn("move")

    def shifted(_: int, target: Scenes) -> Array:
        picture = painted(target)
        padded = np.pad(picture, ((0, 0), (pixels, 0), (0, 0)), "edge")
        return np.asarray(padded[:, : picture.shape[1]])

    share = passing(edits, shifted)
    assert share >= 0.75 if right else share == 0
