"""Whether a picture is a right answer to an edit of the toy world.

Two rules, both needed. They were set on answers blurred, shifted and spoilt, and on pictures
of an early model (tests/demo/test_verdict.py holds them to it):

- *Nothing is out of place.* A pixel is off when some channel is more than `NEAR` away from
  all that the answer shows there and one pixel around: a soft edge is forgiven, since a
  good VAE softens edges, a shape three pixels aside is not. No cell may have more than `OFF`
  such pixels. The count is by cell, not by picture: a missing shape is 2 % of a picture
  whose background has changed, and would drown in it.
- *Nothing is mistaken.* In squared error the picture is nearer to the answer than to any of
  its foils: picture 1, so that a copy of the input never passes, the answer with one shape
  missing, exchanged for another, or of another size, and what lies half-way between the
  answer and picture 1 or the answer without a shape, so that no ghost of more than a quarter
  passes. A small circle and a small square differ by fewer pixels than a soft edge touches,
  so no count can tell them apart; this comparison does at any contrast.

What no rule sees: a tint or an extra shape that differs from its ground by less than
`NEAR`. Whoever compares two recipes looks at the PSNR of their pictures as well, which sees
these.
"""

from __future__ import annotations

import numpy as np

from vellumd.demo.painter import Painter, to_bytes
from vellumd.demo.scenes import CELL, CELLS, CLEAR, GRID, RADII, SHAPES, SIDE, Array, Scenes, join
from vellumd.demo.world import Edits

NEAR = 30
"""How far, of 255, a channel may be from the answer: a third of what any two colours differ."""
OFF = 30
"""Pixels of a cell, of 1024, that may be off."""


class Judge:
    """Judges pictures; holds the painter, whose tables take time to make."""

    def __init__(self) -> None:
        self._painter = Painter()

    def paint(self, scenes: Scenes) -> Array:
        """Pictures [N, SIDE, SIDE, 3] of `scenes` as bytes."""
        return to_bytes(self._painter(scenes))

    def passes(self, picture: Array, edits: Edits, row: int) -> bool:
        """Whether `picture` [SIDE, SIDE, 3] of bytes is one of the right answers to edit `row`."""
        if picture.shape != (SIDE, SIDE, 3):
            return False
        answers = edits.answers(row)
        painted = self.paint(answers)
        fitting = np.flatnonzero(off_by_cell(picture, painted).max(axis=1) <= OFF)
        given = edits.references[0][row : row + 1]
        return any(
            not self._mistaken(picture, painted[number], answers[number : number + 1], given)
            for number in fitting
        )

    def _mistaken(self, picture: Array, painted: Array, answer: Scenes, given: Scenes) -> bool:
        """Whether `picture` is as near to a foil as to `answer`, here also `painted`."""
        far = self.paint(join([given, *spoilt(answer)]))
        shown = self.paint(join([given, *missing(answer)])).astype(np.int32)
        # In gray a shape may hardly be seen, and its ghost not at all.
        clear = np.abs(shown - painted).max(axis=(1, 2, 3)) >= CLEAR * 255
        foils = np.concatenate([far, (shown[clear] + painted) // 2])
        return bool((_error(picture, foils) <= _error(picture, painted[None])).any())


def off_by_cell(picture: Array, answers: Array) -> Array:
    """How many pixels of `picture` are off in each cell: [N, CELLS] for N `answers`."""
    low, high = (_around(answers, reach) for reach in (np.minimum, np.maximum))
    shown = picture.astype(np.int16)
    off = np.maximum(low - shown, shown - high).max(axis=-1) > NEAR
    cells: Array = off.reshape(-1, GRID, CELL, GRID, CELL).sum(axis=(2, 4))
    return cells.reshape(-1, CELLS)


def _around(pictures: Array, reach: np.ufunc) -> Array:
    """The lowest or highest value of each pixel and its eight neighbours, by channel."""
    for axis in (1, 2):
        length = pictures.shape[axis]
        padded = np.pad(pictures, [(1, 1) if one == axis else (0, 0) for one in range(4)], "edge")
        pictures = reach.reduce(
            [padded.take(range(start, start + length), axis=axis) for start in range(3)]
        )
    around: Array = pictures.astype(np.int16)
    return around


def missing(answer: Scenes) -> list[Scenes]:
    """The one scene `answer` without one of its shapes, for each of them."""
    return [answer.clear(np.array([cell])) for cell in np.flatnonzero(answer.taken[0])]


def spoilt(answer: Scenes) -> list[Scenes]:
    """The one scene `answer` with each of its shapes missing, or another, or of another size."""
    wrong = missing(answer)
    for cell in np.flatnonzero(answer.taken[0]):
        where = np.array([cell])
        shape, size, colour = answer.at(where)
        for other in range(len(SHAPES)):
            for extent in range(len(RADII)):
                if (other, extent) != (shape[0], size[0]):
                    wrong.append(answer.put(where, shape=other, size=extent, colour=colour))
    return wrong


def _error(picture: Array, others: Array) -> Array:
    """Squared error of `picture` to each of `others` [N, ..]."""
    difference = others.astype(np.int32) - picture
    error: Array = (difference * difference).sum(axis=(1, 2, 3), dtype=np.int64)
    return error
