"""The gallery that README shows, and the sample pictures that ship.

    python -m vellumd.demo.gallery -o docs/gallery.webp
    python -m vellumd.demo.gallery --samples .

The gallery has one edit of each kind by the base weights: the first one of an exam, right
or wrong. A wrong one says so. `--samples` writes the pictures of `SCENES`
into a folder, to have pictures at hand that the demo understands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vellumd
from vellumd import model_card
from vellumd.demo import exam, world
from vellumd.demo.judge import Recipe
from vellumd.demo.scenes import CELLS, COLOURS, GRID, LARGE, NONE, SHAPES, SIDE, Scenes
from vellumd.demo.verdict import Judge

FOLDER = model_card.DEMO_FOLDER / "samples"
"""Where the sample pictures lie."""

GAP = 8
TEXT = 14
COLUMNS = 2
CAPTION = TEXT + GAP
ARROW = 3 * GAP
WIDTH = 4 * SIDE + 3 * GAP + ARROW
"""Pixels of an edit: three pictures, an arrow, the result."""
HEIGHT = CAPTION + SIDE


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the gallery or the samples."""
    parser = argparse.ArgumentParser(prog="python -m vellumd.demo.gallery", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=Path("gallery.webp"), metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, help="of the exam that is shown")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="write the samples instead")
    args = parser.parse_args(arguments)
    if args.samples:
        args.samples.mkdir(parents=True, exist_ok=True)
        for name, picture in samples().items():
            picture.save(args.samples / f"{name}.png", optimize=True)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    questions = exam.draw(len(world.KINDS), args.seed)
    with vellumd.QwenImageEditEngine(model_card.DEMO) as engine:
        sitting = exam.sit(questions, Recipe.of().on(engine))
    render(questions, sitting).save(args.out, quality=92, method=6)


def render(questions: Sequence[exam.Question], sitting: exam.Sitting) -> Image.Image:
    """All questions of an exam with their answers, in two columns."""
    rows = -(-len(questions) // COLUMNS)
    size = GAP + COLUMNS * (WIDTH + 3 * GAP), GAP + rows * (HEIGHT + 2 * GAP)
    sheet = Image.new("RGB", size, "white")
    judge = Judge()
    for number, question in enumerate(questions):
        column, row = number % COLUMNS, number // COLUMNS
        place = GAP + column * (WIDTH + 3 * GAP), GAP + row * (HEIGHT + 2 * GAP)
        inputs = exam.references(judge, question)
        result = Image.fromarray(sitting.pictures[number])
        caption = question.prompt if sitting.passed[number] else f"{question.prompt} (wrong)"
        sheet.paste(_edit(inputs, caption, result), place)
    return sheet


def _edit(inputs: list[Image.Image], caption: str, result: Image.Image) -> Image.Image:
    """One edit: its caption, below it the input pictures, an arrow and the result."""
    strip = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((0, 0), caption, fill="black", font=ImageFont.load_default(TEXT))
    left = 0
    for picture in inputs:
        strip.paste(picture, (left, CAPTION))
        left += SIDE + GAP
    middle = CAPTION + SIDE // 2
    tip = left + ARROW - 2 * GAP
    draw.line((left, middle, tip, middle), fill="black", width=2)
    draw.polygon([(tip, middle - 5), (tip, middle + 5), (tip + 6, middle)], fill="black")
    strip.paste(result, (left + ARROW, CAPTION))
    # White pictures would have no border on white paper.
    for edge in (*(number * (SIDE + GAP) for number in range(len(inputs))), left + ARROW):
        draw.rectangle((edge, CAPTION, edge + SIDE - 1, HEIGHT - 1), outline="#bbbbbb")
    return strip


def samples() -> dict[str, Image.Image]:
    """The sample pictures by name."""
    judge = Judge()
    return {name: Image.fromarray(judge.paint(scene)[0]) for name, scene in SCENES.items()}


def _scene(start: str, end: str, *shapes: tuple[str, str, int, int]) -> Scenes:
    """A picture with large `shapes` (name, colour, row, column) and a ground."""
    empty = np.zeros((1, CELLS), dtype=np.int64)
    ground = np.array([[COLOURS.index(start), COLOURS.index(end), 2]])
    scene = Scenes(empty + NONE, empty, empty, ground, np.zeros(1, dtype=bool))
    for shape, colour, row, column in shapes:
        scene = scene.put(
            np.array([row * GRID + column]),
            shape=SHAPES.index(shape),
            size=LARGE,
            colour=COLOURS.index(colour),
        )
    return scene


SCENES = {
    "shapes": _scene("white", "white", ("circle", "red", 1, 1), ("square", "orange", 2, 2)),
    "shapes-blue": _scene("white", "white", ("circle", "blue", 1, 1), ("square", "orange", 2, 2)),
    "backdrop": _scene("blue", "purple", ("ring", "white", 0, 3)),
    "star": _scene("black", "black", ("star", "yellow", 0, 2)),
}
"""The samples: one picture to edit and what the example makes of it, one for its background,
one for its shape."""


if __name__ == "__main__":
    main()
