"""The toy world: coloured shapes on a grid of cells, and the edits of them that the demo knows.

A picture of 128x128 pixels has 4x4 cells; one to three of them hold a shape. All is
described by small integer arrays, many scenes at once and without torch, so that the
training draws hundreds of thousands of edits and the judge draws the very same kind.
`Painter` turns descriptions into pixels, as numpy arrays or as another library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
LUMA = (0.299, 0.587, 0.114)
"""Red's, green's and blue's share of grey: ITU-R BT.601."""
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
        readable: Array = _READABLE[self.ground[:, 0], self.ground[:, 1]]
        return readable


def join(parts: Sequence[Scenes]) -> Scenes:
    """All scenes of `parts`, one after the other."""
    return Scenes(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scenes))
    )


def _readable() -> Array:
    """By ground [COLOURS, COLOURS]: which colours [COLOURS] differ from all of the ramp."""
    ramp = np.linspace(0, 1, 17, dtype=np.float32)[:, None]
    ramps = RGB[:, None, None] * (1 - ramp) + RGB[None, :, None] * ramp
    distance = np.abs(ramps[:, :, None] - RGB[None, None, :, None]).max(axis=-1)
    clear: Array = distance.min(axis=-1) >= CLEAR
    return clear


_READABLE = _readable()


# The edits.


@dataclass(frozen=True)
class Edits:
    """N edits: pictures, what is asked of them, and a right answer to it.

    `references` holds picture 1, 2, .. of all edits, the same number for each. `cell`
    [N] is the cell that an answer changes, where there is one.
    """

    kind: tuple[str, ...]
    prompts: list[str]
    references: tuple[Scenes, ...]
    target: Scenes
    cell: Array

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Edits:
        """The edits of `rows`."""
        return Edits(
            self.kind[rows],
            self.prompts[rows],
            tuple(scenes[rows] for scenes in self.references),
            self.target[rows],
            self.cell[rows],
        )

    def answers(self, row: int) -> Scenes:
        """All right answers to the edit `row`: one, or as many as its words leave open."""
        scene, target = (one[row : row + 1] for one in (self.references[0], self.target))
        cell = self.cell[row : row + 1]
        shape, size, colour = target.at(cell)
        free = np.flatnonzero(~scene.taken[0])
        match self.kind[row]:
            case "add":
                many = _repeat(scene, len(free))
                return many.put(free, shape=shape, size=size, colour=colour)
            case "elsewhere":
                start = np.flatnonzero((scene.taken & ~target.taken)[0])
                many = _repeat(scene, len(free))
                return many.move(start.repeat(len(free)), free)
            case "another":
                fit = scene.readable[0].copy()
                fit[scene.at(cell)[2]] = False
                colours = np.flatnonzero(fit)
                many = _repeat(target, len(colours))
                return many.put(cell.repeat(len(colours)), shape=shape, size=size, colour=colours)
            case _:
                return target


def _repeat(scene: Scenes, times: int) -> Scenes:
    return scene[np.zeros(times, dtype=int)]


@dataclass(frozen=True)
class Kind:
    """One kind of edit: how it is drawn, and how people ask for it.

    `held_out` are phrasings that no training sees. `noise` is the share of training
    answers that show another colour than was asked for, as captions from the web do.
    """

    draw: Callable[[Rng, int], Drawn]
    pictures: int
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    noise: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """What a kind draws. `good` [N] tells the draws that make sense; the others are dropped."""

    references: tuple[Scenes, ...]
    target: Scenes
    cell: Array
    good: Array
    shape: Array | None = None
    other: Array | None = None
    colour: Array | None = None
    way: Array | None = None


def scenes(rng: Rng, n: int) -> Scenes:
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
            colour=_pick(rng, made.readable),
        )
        made = more
    return made


def _pick(rng: Rng, mask: Array) -> Array:
    """For each row of `mask` [N, M] the index of one of its true entries, 0 without one."""
    index: Array = (rng.random(mask.shape) * mask).argmax(axis=1)
    return index


def _other(rng: Rng, mask: Array, index: Array) -> Array:
    """`_pick`, but never `index` [N]."""
    mask = mask.copy()
    mask[np.arange(len(mask)), index] = False
    return _pick(rng, mask)


def _recolour(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, scene.taken)
    shape, size, old = scene.at(cell)
    colour = _other(rng, scene.readable, old)
    target = scene.put(cell, shape=shape, size=size, colour=colour)
    return Drawn((scene,), target, cell, colour != old, shape=shape, colour=colour)


def _remove(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, scene.taken)
    return Drawn((scene,), scene.clear(cell), cell, np.ones(n, bool), shape=scene.at(cell)[0])


def _background(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    colour = rng.integers(len(COLOURS), size=n)
    target = replace(scene, ground=np.stack([colour, colour, colour * 0], axis=1))
    far = _READABLE[scene.ground[:, 0], scene.ground[:, 1], colour]
    good = far & _stands_out(target)
    return Drawn((scene,), target, np.zeros(n, int), good, colour=colour)


def _stands_out(scene: Scenes) -> Array:
    """Whether [N] all shapes stand out from the ground."""
    rows = np.arange(len(scene))[:, None]
    clear = scene.readable[rows, scene.colour] | ~scene.taken
    return np.asarray(clear.all(axis=1))


def _replace(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, scene.taken)
    shape, size, colour = scene.at(cell)
    other = _pick(rng, _absent(scene))
    target = scene.put(cell, shape=other, size=size, colour=colour)
    return Drawn((scene,), target, cell, np.ones(n, bool), shape=shape, other=other)


def _absent(scene: Scenes) -> Array:
    """Which shapes [N, SHAPES] are nowhere in the picture."""
    return np.stack([(scene.shape != number).all(axis=1) for number in range(len(SHAPES))], axis=1)


def _gray(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    target = replace(scene, gray=np.ones(n, bool))
    neutral = np.isin(scene.ground, (COLOURS.index("black"), COLOURS.index("white")))[:, :2]
    return Drawn((scene,), target, np.zeros(n, int), np.asarray(~neutral.any(axis=1)))


def _move(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, scene.taken)
    way = rng.integers(len(WAYS), size=n)
    step = np.array(list(WAYS.values()))[way]
    row, column = cell // GRID + step[:, 0], cell % GRID + step[:, 1]
    inside: Array = (row >= 0) & (row < GRID) & (column >= 0) & (column < GRID)
    end = np.where(inside, row * GRID + column, cell)
    good = np.asarray(inside & ~scene.taken[np.arange(n), end])
    shape = scene.at(cell)[0]
    return Drawn((scene,), scene.move(cell, end), end, good, shape=shape, way=way)


def _elsewhere(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, scene.taken)
    end = _pick(rng, ~scene.taken)
    shape = scene.at(cell)[0]
    return Drawn((scene,), scene.move(cell, end), end, np.ones(n, bool), shape=shape)


def _add(rng: Rng, n: int) -> Drawn:
    scene = scenes(rng, n)
    cell = _pick(rng, ~scene.taken)
    shape, colour = _pick(rng, _absent(scene)), _pick(rng, scene.readable)
    target = scene.put(cell, shape=shape, size=LARGE, colour=colour)
    return Drawn((scene,), target, cell, np.ones(n, bool), shape=shape, colour=colour)


def _put(rng: Rng, n: int) -> Drawn:
    scene, second = scenes(rng, n), scenes(rng, n)
    target, cell, shape, good = _transplant(rng, scene, second)
    return Drawn((scene, second), target, cell, good, shape=shape)


def _transplant(rng: Rng, scene: Scenes, donor: Scenes) -> tuple[Scenes, Array, Array, Array]:
    """`scene` with a shape of `donor` in its place; its cell, its name, whether it fits."""
    cell = _pick(rng, donor.taken)
    shape, size, colour = donor.at(cell)
    rows = np.arange(len(scene))
    good: Array = ~scene.taken[rows, cell] & scene.readable[rows, colour]
    return scene.put(cell, shape=shape, size=size, colour=colour), cell, shape, good


def _backdrop(rng: Rng, n: int) -> Drawn:
    scene, second = scenes(rng, n), scenes(rng, n)
    target = replace(scene, ground=second.ground)
    good = _stands_out(target) & _unlike(scene, second)
    return Drawn((scene, second), target, np.zeros(n, int), good)


def _unlike(one: Scenes, two: Scenes) -> Array:
    """Whether [N] two pictures' grounds differ clearly, on a tenth of the picture at least.

    Looked at, not concluded from the colours: a ramp from blue to red is one from red to
    blue turned round.
    """
    difference = np.abs(_coarse(one.ground) - _coarse(two.ground)).max(axis=-1)
    unlike: Array = (difference >= CLEAR).mean(axis=1) >= 0.1
    return unlike


def _coarse(ground: Array) -> Array:
    """The pixels [N, M, 3] of `ground` [N, 3] on a coarse grid."""
    start, end = (RGB[ground[:, part], None] for part in (0, 1))
    coarse: Array = start + (end - start) * _COARSE[ground[:, 2]][..., None]
    return coarse


def _compose(rng: Rng, n: int) -> Drawn:
    scene, second, third = (scenes(rng, n) for _ in range(3))
    grounded = replace(scene, ground=second.ground)
    target, cell, shape, good = _transplant(rng, grounded, third)
    good = good & _stands_out(grounded) & _unlike(scene, second)
    return Drawn((scene, second, third), target, cell, good, shape=shape)


KINDS: dict[str, Kind] = {
    "recolour": Kind(
        _recolour, 1,
        ("make the {shape} {colour}", "change the {shape} to {colour}",
         "paint the {shape} {colour}", "the {shape} should be {colour}"),
        ("turn the {shape} {colour}",),
    ),
    "remove": Kind(
        _remove, 1,
        ("remove the {shape}", "delete the {shape}", "take the {shape} away", "no {shape} please"),
        ("take away the {shape}",),
    ),
    "background": Kind(
        _background, 1,
        ("change the background to {colour}", "make the background {colour}",
         "use a {colour} background", "the background should be {colour}"),
        ("paint the background {colour}",),
    ),
    "replace": Kind(
        _replace, 1,
        ("replace the {shape} with a {other}", "turn the {shape} into a {other}",
         "change the {shape} into a {other}", "the {shape} should be a {other}"),
        ("make the {shape} a {other}",),
    ),
    "gray": Kind(
        _gray, 1,
        ("make the picture gray", "turn the picture black and white",
         "remove all colours", "a black and white picture please"),
        ("change the picture to black and white",),
    ),
    "move": Kind(
        _move, 1,
        ("move the {shape} {way}", "shift the {shape} {way}", "push the {shape} {way}",
         "the {shape} should go {way}"),
        ("move the {shape} one step {way}",),
    ),
    "add": Kind(
        _add, 1,
        ("add a {colour} {shape}", "draw a {colour} {shape}", "put in a {colour} {shape}",
         "a {colour} {shape} should be added"),
        ("add one {colour} {shape} please",),
    ),
    "elsewhere": Kind(
        _elsewhere, 1,
        ("move the {shape} somewhere else", "put the {shape} in another place",
         "the {shape} should go elsewhere", "shift the {shape} to another place"),
        ("put the {shape} somewhere else",),
    ),
    "another": Kind(
        _recolour, 1,
        ("give the {shape} another colour", "paint the {shape} in a different colour",
         "change the colour of the {shape}", "the {shape} should have a different colour"),
        ("give the {shape} a different colour",),
    ),
    "caption": Kind(
        _recolour, 1,
        ("caption: a {colour} {shape}", "caption: {colour} {shape}",
         "caption: one {colour} {shape}", "caption: the {shape} in {colour}"),
        ("caption: the {colour} {shape}",),
        noise=0.35,
    ),
    "put": Kind(
        _put, 2,
        ("put the {shape} of picture 2 into picture 1", "add the {shape} of picture 2",
         "copy the {shape} from picture 2 to picture 1",
         "picture 1 should have the {shape} of picture 2"),
        ("add the {shape} from picture 2 to picture 1",),
    ),
    "backdrop": Kind(
        _backdrop, 2,
        ("use the background of picture 2", "give picture 1 the background of picture 2",
         "copy the background from picture 2", "picture 1 should have the background of picture 2"),
        ("put the background of picture 2 into picture 1",),
    ),
    "compose": Kind(
        _compose, 3,
        ("use the background of picture 2 and the {shape} of picture 3",
         "put the {shape} of picture 3 on the background of picture 2",
         "give picture 1 the background of picture 2 and add the {shape} of picture 3",
         "copy the background from picture 2 and the {shape} from picture 3"),
        ("add the {shape} of picture 3 and use the background of picture 2",),
    ),
}  # fmt: skip
"""What the demo knows, by name. *add*, *elsewhere* and *another* leave a choice open, so
that the answer comes out of the noise; *caption* is learned from captions of which a third
are wrong, so that it needs guidance."""


def draw(kind: str, n: int, rng: Rng, *, held_out: bool = False, noisy: bool = False) -> Edits:
    """`n` edits of one `kind`. Equal generators draw equal edits.

    `held_out` uses the phrasings that no training sees; `noisy` answers some captions
    wrongly, for training.
    """
    plan = KINDS[kind]
    parts: list[Edits] = []
    while (missing := n - sum(map(len, parts))) > 0:
        # A little more than is missing, since some draws make no sense.
        parts.append(_drawn(kind, plan, missing + missing // 2 + 8, rng, held_out, noisy))
    return _together(parts)[:n]


def _drawn(kind: str, plan: Kind, n: int, rng: Rng, held_out: bool, noisy: bool) -> Edits:
    drawn = plan.draw(rng, n)
    phrasings = plan.held_out if held_out else plan.phrasings
    phrasing = rng.integers(len(phrasings), size=n)
    target = drawn.target
    if noisy and plan.noise:
        target = _wrong(rng, drawn, plan.noise)
    rows = np.flatnonzero(drawn.good)
    prompts = [polished(phrasings[phrasing[row]].format(**_words(drawn, row))) for row in rows]
    return Edits(
        (kind,) * len(rows),
        prompts,
        tuple(scenes[rows] for scenes in drawn.references),
        target[rows],
        drawn.cell[rows],
    )


def polished(sentence: str) -> str:
    """`sentence` with the right article."""
    return sentence.replace("a orange", "an orange")


def _words(drawn: Drawn, row: Any) -> dict[str, str]:
    lists = {"shape": SHAPES, "other": SHAPES, "colour": COLOURS, "way": tuple(WAYS)}
    chosen = {name: getattr(drawn, name) for name in lists}
    return {name: lists[name][index[row]] for name, index in chosen.items() if index is not None}


def _wrong(rng: Rng, drawn: Drawn, share: float) -> Scenes:
    """The targets, of which `share` have another colour than was asked for."""
    shape, size, colour = drawn.target.at(drawn.cell)
    astray = _other(rng, drawn.target.readable, colour)
    colour = np.where(rng.random(len(colour)) < share, astray, colour)
    return drawn.target.put(drawn.cell, shape=shape, size=size, colour=colour)


def _together(parts: list[Edits]) -> Edits:
    return Edits(
        sum((part.kind for part in parts), ()),
        [prompt for part in parts for prompt in part.prompts],
        tuple(join(scenes) for scenes in zip(*(part.references for part in parts), strict=True)),
        join([part.target for part in parts]),
        np.concatenate([part.cell for part in parts]),
    )


# The pixels.


class Painter:
    """Scenes to pixels. Works on numpy arrays, or on those that `asarray` makes."""

    def __init__(self, asarray: Callable[[Array], Any] = np.asarray) -> None:
        """`asarray` turns a numpy array into the library's own, on its device."""
        self._asarray = asarray
        self._sprites, self._ramps, self._rgb, self._luma = (
            asarray(table) for table in (_sprites(), _ramps(), RGB, np.array(LUMA, np.float32))
        )

    def __call__(self, scenes: Scenes) -> Any:
        """Pictures [N, SIDE, SIDE, 3] of `scenes`, from 0 to 1."""
        n = len(scenes)
        sprite = np.where(scenes.taken, scenes.shape * len(RADII) + scenes.size, NONE)
        cover = self._sprites[self._asarray(sprite)]
        colour = self._rgb[self._asarray(scenes.colour)][:, :, None, None] * cover[..., None]
        cover, colour = (_assemble(cells, n) for cells in (cover[..., None], colour))
        start, end, way = (self._asarray(scenes.ground[:, part].copy()) for part in range(3))
        start, end = (self._rgb[index][:, None, None] for index in (start, end))
        ground = start + (end - start) * self._ramps[way][..., None]
        picture = ground * (1 - cover) + colour
        gray = (picture * self._luma).sum(-1)[..., None]
        return (
            picture
            + (gray - picture) * self._asarray(scenes.gray * np.float32(1))[:, None, None, None]
        )


def _assemble(cells: Any, n: int) -> Any:
    """Cells [N, CELLS, CELL, CELL, C] as pictures [N, SIDE, SIDE, C]."""
    grid = cells.reshape(n, GRID, GRID, CELL, CELL, -1).swapaxes(2, 3)
    return grid.reshape(n, SIDE, SIDE, -1)


def _sprites() -> Array:
    """How much of each pixel a shape covers: [SHAPES·RADII + 1, CELL, CELL], the last empty."""
    fine = 8
    axis = (np.arange(CELL * fine) + 0.5) / fine - CELL / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    covers = [_inside(shape, x / radius, y / radius) for shape in SHAPES for radius in RADII]
    covers.append(np.zeros_like(x, dtype=bool))
    split = np.stack(covers).reshape(len(covers), CELL, fine, CELL, fine)
    sprites: Array = split.mean(axis=(2, 4), dtype=np.float32)
    return sprites


def _inside(shape: str, x: Array, y: Array) -> Array:
    """Which points are in `shape` of radius 1 around the origin; y points down."""
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            inside = radius <= 0.95
        case "ring":
            inside = (radius <= 0.95) & (radius >= 0.5)
        case "square":
            inside = np.maximum(np.abs(x), np.abs(y)) <= 0.82
        case "triangle":
            # Apothem of an equilateral triangle: half its radius.
            slopes = [y, -y / 2 + x * np.sqrt(0.75), -y / 2 - x * np.sqrt(0.75)]
            inside = np.maximum.reduce(slopes) <= 0.5
        case _:
            # A pentagram: five lines; a point inside is beyond at most one of them.
            turns = np.arange(5) * 2 * np.pi / 5 + np.pi / 2
            lines = [x * np.cos(turn) + y * np.sin(turn) for turn in turns]
            inside = np.sum([line <= np.cos(2 * np.pi / 5) for line in lines], axis=0) >= 4
    return np.asarray(inside)


def _ramps() -> Array:
    """From 0 to 1 across the picture in eight directions: [8, SIDE, SIDE]."""
    axis = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    turns = [number * np.pi / 4 for number in range(8)]
    slopes = [x * np.cos(turn) + y * np.sin(turn) for turn in turns]
    ramps = [slope / (2 * np.abs(slope).max()) + 0.5 for slope in slopes]
    return np.stack(ramps).astype(np.float32)


def to_bytes(pictures: Array) -> Array:
    """Pictures from 0 to 1 as bytes."""
    return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)


_COARSE = _ramps()[:, 8::16, 8::16].reshape(8, -1)
