"""The toy world's edits: what the demo is asked, how it is said, and what answers it.

Edits are drawn many at once, the same way for the training and for the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vellumd.demo.painter import ramps
from vellumd.demo.scenes import (
    CLEAR,
    COLOURS,
    GRID,
    LARGE,
    RADII,
    READABLE,
    RGB,
    SHAPES,
    WAYS,
    Array,
    Rng,
    Scenes,
    draw_scenes,
    join,
    pick,
    pick_other,
)


@dataclass(frozen=True)
class Edits:
    """N edits of one `kind`: pictures, what is asked of them, and a right answer to it.

    `references` holds picture 1, 2, .. of all edits, the same number for each. `cell`
    [N] is the cell that an answer changes, where there is one.
    """

    kind: str
    prompts: list[str]
    references: tuple[Scenes, ...]
    target: Scenes
    cell: Array

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Edits:
        """The edits of `rows`."""
        return Edits(
            self.kind,
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
        match self.kind:
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

    `held_out` are phrasings that no training sees, `trained` ones that only training does: the
    judge asks as it always did. `noise` is the share of training
    answers that are not what was asked for, as with captions from the web.
    """

    draw: Callable[[Rng, int], Drawn]
    pictures: int
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    trained: tuple[str, ...] = ()
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


def _recolour(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, scene.taken)
    shape, size, old = scene.at(cell)
    colour = pick_other(rng, scene.readable, old)
    target = scene.put(cell, shape=shape, size=size, colour=colour)
    return Drawn((scene,), target, cell, colour != old, shape=shape, colour=colour)


def _remove(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, scene.taken)
    return Drawn((scene,), scene.clear(cell), cell, np.ones(n, bool), shape=scene.at(cell)[0])


def _background(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    colour = rng.integers(len(COLOURS), size=n)
    target = replace(scene, ground=np.stack([colour, colour, colour * 0], axis=1))
    far = READABLE[scene.ground[:, 0], scene.ground[:, 1], colour]
    good = far & _stands_out(target)
    return Drawn((scene,), target, np.zeros(n, int), good, colour=colour)


def _stands_out(scene: Scenes) -> Array:
    """Whether [N] all shapes stand out from the ground."""
    rows = np.arange(len(scene))[:, None]
    clear = scene.readable[rows, scene.colour] | ~scene.taken
    return np.asarray(clear.all(axis=1))


def _replace(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, scene.taken)
    shape, size, colour = scene.at(cell)
    other = pick(rng, _absent(scene))
    target = scene.put(cell, shape=other, size=size, colour=colour)
    return Drawn((scene,), target, cell, np.ones(n, bool), shape=shape, other=other)


def _absent(scene: Scenes) -> Array:
    """Which shapes [N, SHAPES] are nowhere in the picture."""
    return np.stack([(scene.shape != number).all(axis=1) for number in range(len(SHAPES))], axis=1)


def _gray(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    target = replace(scene, gray=np.ones(n, bool))
    neutral = np.isin(scene.ground, (COLOURS.index("black"), COLOURS.index("white")))[:, :2]
    return Drawn((scene,), target, np.zeros(n, int), np.asarray(~neutral.any(axis=1)))


def _move(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, scene.taken)
    way = rng.integers(len(WAYS), size=n)
    step = np.array(list(WAYS.values()))[way]
    row, column = cell // GRID + step[:, 0], cell % GRID + step[:, 1]
    inside: Array = (row >= 0) & (row < GRID) & (column >= 0) & (column < GRID)
    end = np.where(inside, row * GRID + column, cell)
    good = np.asarray(inside & ~scene.taken[np.arange(n), end])
    shape = scene.at(cell)[0]
    return Drawn((scene,), scene.move(cell, end), end, good, shape=shape, way=way)


def _elsewhere(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, scene.taken)
    end = pick(rng, ~scene.taken)
    shape = scene.at(cell)[0]
    return Drawn((scene,), scene.move(cell, end), end, np.ones(n, bool), shape=shape)


def _add(rng: Rng, n: int) -> Drawn:
    scene = draw_scenes(rng, n)
    cell = pick(rng, ~scene.taken)
    shape, colour = pick(rng, _absent(scene)), pick(rng, scene.readable)
    target = scene.put(cell, shape=shape, size=LARGE, colour=colour)
    return Drawn((scene,), target, cell, np.ones(n, bool), shape=shape, colour=colour)


def _put(rng: Rng, n: int) -> Drawn:
    scene, second = draw_scenes(rng, n), draw_scenes(rng, n)
    target, cell, shape, good = _transplant(rng, scene, second)
    return Drawn((scene, second), target, cell, good, shape=shape)


def _transplant(rng: Rng, scene: Scenes, donor: Scenes) -> tuple[Scenes, Array, Array, Array]:
    """`scene` with a shape of `donor` in its place; its cell, its name, whether it fits."""
    cell = pick(rng, donor.taken)
    shape, size, colour = donor.at(cell)
    rows = np.arange(len(scene))
    good: Array = ~scene.taken[rows, cell] & scene.readable[rows, colour]
    return scene.put(cell, shape=shape, size=size, colour=colour), cell, shape, good


def _backdrop(rng: Rng, n: int) -> Drawn:
    scene, second = draw_scenes(rng, n), draw_scenes(rng, n)
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
    scene, second, third = (draw_scenes(rng, n) for _ in range(3))
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
        # The words of the one held out, which recolouring has too, in another order.
        trained=("make a {other} of the {shape}",),
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
        # Else "one" stands in captions alone, and the phrasing held out is read as one.
        trained=("one {colour} {shape} more please",),
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
        noise=0.25,
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
that the answer comes out of the noise; *caption* is learned from captions of which a quarter
are wrong, so that it needs guidance."""


def draw(kind: str, n: int, rng: Rng, *, held_out: bool = False, training: bool = False) -> Edits:
    """`n` edits of one `kind`. Equal generators draw equal edits.

    `held_out` uses the phrasings that no training sees; `training` uses some more than the
    judge does, and answers some captions wrongly.
    """
    plan = KINDS[kind]
    parts: list[Edits] = []
    while (missing := n - sum(map(len, parts))) > 0:
        # A little more than is missing, since some draws make no sense.
        parts.append(_drawn(kind, plan, missing + missing // 2 + 8, rng, held_out, training))
    return _together(parts)[:n]


def _drawn(kind: str, plan: Kind, n: int, rng: Rng, held_out: bool, training: bool) -> Edits:
    drawn = plan.draw(rng, n)
    phrasings = plan.held_out if held_out else plan.phrasings
    if training:
        phrasings = (*phrasings, *plan.trained)
    phrasing = rng.integers(len(phrasings), size=n)
    target = drawn.target
    if training and plan.noise:
        target = _wrong(rng, drawn, plan.noise)
    rows = np.flatnonzero(drawn.good)
    prompts = [polished(phrasings[phrasing[row]].format(**_words(drawn, row))) for row in rows]
    return Edits(
        kind,
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
    """The targets, of which `share` have another shape of another size and colour in `cell`.

    Wrong answers are many and each of them is rare: that is what guidance leaves behind.
    """
    target, cell = drawn.target, drawn.cell
    shape, size, colour = target.at(cell)
    wrong = rng.random(len(cell)) < share
    return target.put(
        cell,
        shape=np.where(wrong, pick(rng, _absent(target)), shape),
        size=np.where(wrong, rng.integers(len(RADII), size=len(cell)), size),
        colour=np.where(wrong, pick_other(rng, target.readable, colour), colour),
    )


def _together(parts: list[Edits]) -> Edits:
    return Edits(
        parts[0].kind,
        [prompt for part in parts for prompt in part.prompts],
        tuple(join(scenes) for scenes in zip(*(part.references for part in parts), strict=True)),
        join([part.target for part in parts]),
        np.concatenate([part.cell for part in parts]),
    )


_COARSE = ramps()[:, 8::16, 8::16].reshape(8, -1)
