"""Scenes of the toy world: coloured shapes on a grid of cells.

A picture of 128x128 pixels has 4x4 cells; one to three of them hold a shape. All is
described by small integer arrays, many scenes at once and without torch, so that the
training draws hundreds of thousands of edits and the judge draws the very same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 128
"""Pixels of a picture's side."""
GRID = 4
"""Cells of a picture's side."""
CELLS = GRID * GRID
CELL = SIDE // GRID

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
RGB = np.array(
    [
        (0.86, 0.14, 0.14), (0.97, 0.54, 0.10), (0.95, 0.87, 0.20), (0.16, 0.66, 0.26),
        (0.16, 0.31, 0.86), (0.58, 0.22, 0.72), (0.08, 0.08, 0.08), (0.96, 0.96, 0.96),
    ],
    dtype=np.float32,
)  # fmt: skip
"""Red, green, blue from 0 to 1 by colour; any two differ by at least 0.3 in one of them."""
RADII = (12.0, 15.0)
"""Pixels from a shape's centre to its tips, by size; a square's are a sixth further out."""
LARGE = len(RADII) - 1
NONE = -1
"""The shape of an empty cell."""
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
CLEAR = 0.3
"""How far a shape's colour is at least from any colour of its ground, in some channel."""

Array = NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class Scenes:
    """N pictures' descriptions; every array has N rows.

    `shape`, `size` and `colour` [N, CELLS] count in SHAPES (NONE: empty), RADII and
    COLOURS. `ground` [N, 3] is the colour at its start, at its end, and the direction
    from one to the other in eighths of a turn. `gray` [N] tells pictures without colour.
    """

    shape: Array
    size: Array
    colour: Array
    ground: Array
    gray: Array

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: Any) -> Scenes:
        """The scenes of `rows`, which selects as in numpy and keeps the first axis."""
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, cell: Array, *, shape: Any, size: Any, colour: Any) -> Scenes:
        """With a shape in `cell` [N]; what was there is gone."""
        changed = {}
        for name, value in (("shape", shape), ("size", size), ("colour", colour)):
            array = getattr(self, name).copy()
            array[np.arange(len(self)), cell] = value
            changed[name] = array
        return replace(self, **changed)

    def clear(self, cell: Array) -> Scenes:
        """With `cell` [N] empty."""
        return self.put(cell, shape=NONE, size=0, colour=0)

    def move(self, start: Array, end: Array) -> Scenes:
        """With the shape of cell `start` [N] in cell `end`."""
        shape, size, colour = self.at(start)
        return self.clear(start).put(end, shape=shape, size=size, colour=colour)

    def at(self, cell: Array) -> tuple[Array, Array, Array]:
        """Shape, size and colour in `cell` [N]."""
        rows = np.arange(len(self))
        return self.shape[rows, cell], self.size[rows, cell], self.colour[rows, cell]

    @cached_property
    def taken(self) -> Array:
        """Which cells [N, CELLS] hold a shape."""
        taken: Array = self.shape != NONE
        return taken

    @cached_property
    def readable(self) -> Array:
        """Which colours [N, COLOURS] stand out from the ground."""
        readable: Array = READABLE[self.ground[:, 0], self.ground[:, 1]]
        return readable


def join(parts: Sequence[Scenes]) -> Scenes:
    """All scenes of `parts`, one after the other."""
    return Scenes(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scenes))
    )


def _by_ground() -> Array:
    """By ground [COLOURS, COLOURS]: which colours [COLOURS] differ from all of the ramp."""
    ramp = np.linspace(0, 1, 17, dtype=np.float32)[:, None]
    ramps = RGB[:, None, None] * (1 - ramp) + RGB[None, :, None] * ramp
    distance = np.abs(ramps[:, :, None] - RGB[None, None, :, None]).max(axis=-1)
    clear: Array = distance.min(axis=-1) >= CLEAR
    return clear


READABLE = _by_ground()
"""By a ground's two colours: which colours stand out from all of it."""


def draw_scenes(rng: Rng, n: int) -> Scenes:
    """`n` pictures with one to three different shapes in colours that stand out."""
    gradient = rng.random(n) < 0.5
    start, end = rng.integers(len(COLOURS), size=(2, n))
    ground = np.stack([start, np.where(gradient, end, start), rng.integers(8, size=n)], axis=1)
    empty = np.zeros((n, CELLS), dtype=np.int64)
    made = Scenes(empty + NONE, empty, empty, ground, np.zeros(n, dtype=bool))
    cells = rng.random((n, CELLS)).argsort(axis=1)
    shapes = rng.random((n, len(SHAPES))).argsort(axis=1)
    count = rng.integers(1, 4, size=n)
    for number in range(3):
        more = made.put(
            cells[:, number],
            shape=np.where(number < count, shapes[:, number], NONE),
            size=rng.integers(len(RADII), size=n),
            colour=pick(rng, made.readable),
        )
        made = more
    return made


def pick(rng: Rng, mask: Array) -> Array:
    """For each row of `mask` [N, M] the index of one of its true entries, 0 without one."""
    index: Array = (rng.random(mask.shape) * mask).argmax(axis=1)
    return index


def pick_other(rng: Rng, mask: Array, index: Array) -> Array:
    """`pick`, but never `index` [N]."""
    mask = mask.copy()
    mask[np.arange(len(mask)), index] = False
    return pick(rng, mask)
