"""Exams: the same questions for all, judged one by one and in pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vellumd.demo import exam, intervals
from vellumd.demo.verdict import Judge
from vellumd.demo.world import KINDS

JUDGE = Judge()
N = 2 * len(KINDS)


def pupil(questions: list[exam.Question], right: Callable[[int], bool]) -> exam.Edit:
    """Answers questions in order: with the target where `right`, else with picture 1."""
    turns = iter(range(len(questions)))

    def edit(pictures: list[Image.Image], prompt: str, seed: int) -> Image.Image:
        number = next(turns)
        question = questions[number]
        assert (prompt, seed) == (question.prompt, question.noise)
        target = question.edits.target[question.row : question.row + 1]
        return Image.fromarray(JUDGE.paint(target)[0]) if right(number) else pictures[0]

    return edit


def sat(right: Callable[[int], bool]) -> exam.Sitting:
    questions = exam.draw(N, 0)
    return exam.sit(questions, pupil(questions, right))


def asked(questions: list[exam.Question]) -> list[tuple[str, str, int]]:
    return [(question.kind, question.prompt, question.noise) for question in questions]


def test_the_same_seed_asks_the_same() -> None:
    """Questions and noise are those of the seed; another seed asks others."""
    assert asked(exam.draw(N, 3)) == asked(exam.draw(N, 3)) != asked(exam.draw(N, 4))


def test_every_question_has_its_own_noise() -> None:
    """No two edits start from the same noise."""
    assert len({question.noise for question in exam.draw(52, 0)}) == 52


def test_kinds_take_turns() -> None:
    """The questions are spread evenly; what is left over goes to the first kinds."""
    kinds = [question.kind for question in exam.draw(len(KINDS) + 2, 0)]
    assert kinds == [*KINDS, *list(KINDS)[:2]]
    assert [question.kind for question in exam.draw(3, 0)] == list(KINDS)[:3]


def test_held_out_phrasings() -> None:
    """An exam with unseen phrasings shares none with the other."""
    seen, unseen = exam.draw(N, 0), exam.draw(N, 0, held_out=True)
    assert not {question.prompt for question in seen} & {question.prompt for question in unseen}


def lefty() -> exam.Sit:
    """Sits every part twice: by copies of picture 1, and by answers in black."""
    black = Image.new("RGB", (128, 128))
    return lambda questions: [
        exam.sit(questions, lambda pictures, prompt, seed: pictures[0]),
        exam.sit(questions, lambda pictures, prompt, seed: black),
    ]


def test_processes_share_an_exam() -> None:
    """In parts, of which the sittings are joined in the questions' order."""
    questions = exam.draw(7, seed=3)
    told: list[int] = []
    for apart, alone in zip(
        exam.share(questions, lefty, 2, told.append), lefty()(questions), strict=True
    ):
        assert apart.kinds == alone.kinds
        assert np.array_equal(apart.passed, alone.passed)
        assert np.array_equal(np.stack(apart.pictures), np.stack(alone.pictures))
        assert len(apart.seconds) == 7
    assert told == list(range(1, 8))


def test_scores() -> None:
    """Targets pass and copies fail, in all and by kind; progress is told."""
    told: list[int] = []
    questions = exam.draw(N, 0)
    sitting = exam.sit(questions, pupil(questions, lambda n: n < len(KINDS)), told.append)
    assert told == list(range(1, N + 1))
    assert sitting.score.success == 0.5
    assert sitting.score.interval[0] < 0.5 < sitting.score.interval[1]
    assert {kind: score.success for kind, score in sitting.by_kind().items()} == dict.fromkeys(
        KINDS, 0.5
    )
    assert sitting.seconds.min() >= 0


def test_flips_of_a_pair() -> None:
    """What one recipe lost and won against another on the same questions."""
    pairs = exam.compare(sat(lambda n: n >= 5), sat(lambda n: n != 10 and n != 11 and n > 0))
    assert (pairs.lost, pairs.gained) == (2, 4)
    assert pairs.difference == pytest.approx(2 / N)
    assert pairs.interval == intervals.paired(19, 4, 2, 1)


def test_equal_pictures_in_decibel() -> None:
    """The same pictures are as near as can be told; others are further apart."""
    right = sat(lambda n: True)
    same = exam.compare(right, right)
    assert (same.psnr, same.psnr_low, same.lost, same.gained) == (exam.SAME, exam.SAME, 0, 0)
    assert exam.compare(right, sat(lambda n: n > 3)).psnr_low < 40


def test_psnr() -> None:
    """A difference of 1 of 255 in every channel is 48.13 dB."""
    gray = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert exam.psnr(gray, gray + 1) == pytest.approx(48.13, abs=0.01)
