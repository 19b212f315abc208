"""An exam in the toy world: edits and their noise, sat by anything that edits pictures."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vellumd.demo import intervals, world
from vellumd.demo.scenes import Array
from vellumd.demo.verdict import Judge
from vellumd.demo.world import Edits
from vellumd.models import Frozen

Edit = Callable[[list[Image.Image], str, int], Image.Image]
"""What sits an exam: pictures, prompt and noise seed in, the edited picture out."""

PART = 4
"""Questions that a process is given at a time."""
SAME = 99.0
"""PSNR in decibel that stands for equal pictures, where it is infinite."""


@dataclass(frozen=True)
class Question:
    """One edit of an exam: row `row` of `edits`, and the seed of its noise."""

    edits: Edits
    row: int
    noise: int

    @property
    def kind(self) -> str:
        """The edit's kind."""
        return self.edits.kind

    @property
    def prompt(self) -> str:
        """What is asked for."""
        return self.edits.prompts[self.row]


def draw(
    n: int, seed: int, *, held_out: bool = False, kinds: Collection[str] = tuple(world.KINDS)
) -> list[Question]:
    """`n` questions spread evenly over `kinds`, which take turns.

    The same arguments give the same questions; no training draws from these generators.
    `held_out` asks in phrasings that no training sees.
    """
    names = tuple(kinds)[:n]
    drawn = []
    for turn, kind in enumerate(names):
        rng = np.random.default_rng([*b"judge", seed, list(world.KINDS).index(kind)])
        edits = world.draw(kind, len(range(turn, n, len(names))), rng, held_out=held_out)
        noise = rng.integers(2**32, size=len(edits))
        drawn.append([Question(edits, row, int(noise[row])) for row in range(len(edits))])
    return [drawn[number % len(names)][number // len(names)] for number in range(n)]


class Score(Frozen):
    """Passed edits of `n` as a share, with its 95 % interval."""

    success: float
    n: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, passed: Array) -> Score:
        """The score of `passed` [n] booleans."""
        count = int(passed.sum())
        return cls(success=count / len(passed), n=len(passed),
                   interval=intervals.wilson(count, len(passed)))  # fmt: skip


@dataclass(frozen=True)
class Sitting:
    """How an exam of N questions went: `kinds`, `passed` [N], `pictures` as bytes, seconds."""

    kinds: tuple[str, ...]
    passed: Array
    pictures: list[Array]
    seconds: Array

    @property
    def score(self) -> Score:
        """Of all kinds together."""
        return Score.of(self.passed)

    @classmethod
    def joined(cls, parts: Sequence[Sitting]) -> Sitting:
        """`parts` of one exam, in the order of its questions."""
        return cls(
            tuple(kind for part in parts for kind in part.kinds),
            np.concatenate([part.passed for part in parts]),
            [picture for part in parts for picture in part.pictures],
            np.concatenate([part.seconds for part in parts]),
        )

    def by_kind(self) -> dict[str, Score]:
        """The score of each kind."""
        kinds = np.array(self.kinds)
        return {kind: Score.of(self.passed[kinds == kind]) for kind in dict.fromkeys(self.kinds)}


def sit(
    questions: Sequence[Question], edit: Edit, tell: Callable[[int], None] = lambda done: None
) -> Sitting:
    """Have `edit` answer all `questions`; `tell` hears how many are done."""
    judge = Judge()
    pictures, seconds, passed = [], [], []
    for done, question in enumerate(questions, 1):
        inputs = references(judge, question)
        started = time.perf_counter()
        answer = edit(inputs, question.prompt, question.noise)
        seconds.append(time.perf_counter() - started)
        pictures.append(np.asarray(answer.convert("RGB")))
        passed.append(judge.passes(pictures[-1], question.edits, question.row))
        tell(done)
    kinds = tuple(question.kind for question in questions)
    return Sitting(kinds, np.array(passed, dtype=bool), pictures, np.array(seconds))


Sit = Callable[[Sequence[Question]], list[Sitting]]
"""Some questions to one sitting of each of several recipes."""


def share(
    questions: Sequence[Question],
    prepare: Callable[[], Sit],
    jobs: int,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Sitting]:
    """The sittings of all `questions`, which `jobs` processes take in parts.

    Each calls `prepare` once, which is a function of a module or a partial of one.
    """
    parts = [questions[at : at + PART] for at in range(0, len(questions), PART)]
    found, done = [], 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=_enter, initargs=(prepare,)) as processes:
        for part, sittings in zip(parts, processes.map(_take, parts), strict=True):
            found.append(sittings)
            for _ in part:
                done += 1
                tell(done)
    return [Sitting.joined(of_one) for of_one in zip(*found, strict=True)]


_sit: Sit
"""Of this process, if it is one of `share`'s."""


def _enter(prepare: Callable[[], Sit]) -> None:
    global _sit
    _sit = prepare()


def _take(questions: Sequence[Question]) -> list[Sitting]:
    return _sit(questions)


def references(judge: Judge, question: Question) -> list[Image.Image]:
    """The pictures that a question is about."""
    row = question.row
    scenes = (scenes[row : row + 1] for scenes in question.edits.references)
    return [Image.fromarray(judge.paint(scene)[0]) for scene in scenes]


class Comparison(Frozen):
    """What a second recipe made of an exam that a first one sat on the same noise.

    `lost` edits passed with the first alone, `gained` with the second alone. `difference`
    of the success, second minus first, has a paired 95 % interval. PSNR is of the
    second's pictures to the first's in decibel: the median, and what 95 % reach.
    """

    n: int
    lost: int
    gained: int
    difference: float
    interval: tuple[float, float]
    psnr: float
    psnr_low: float


def compare(first: Sitting, second: Sitting) -> Comparison:
    """Two sittings of the same questions, pair by pair."""
    lost = int((first.passed & ~second.passed).sum())
    gained = int((~first.passed & second.passed).sum())
    both = int((first.passed & second.passed).sum())
    n = len(first.passed)
    decibel = [psnr(a, b) for a, b in zip(first.pictures, second.pictures, strict=True)]
    median, low = np.percentile(decibel, [50, 5])
    return Comparison(
        n=n,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / n,
        interval=intervals.paired(both, gained, lost, n - both - gained - lost),
        psnr=round(float(median), 2),
        psnr_low=round(float(low), 2),
    )


def psnr(one: Array, other: Array) -> float:
    """Peak signal-to-noise ratio of two pictures of bytes in decibel; at most `SAME`."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return SAME if error == 0 else min(SAME, float(10 * np.log10(255**2 / error)))
