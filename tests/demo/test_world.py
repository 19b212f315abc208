"""The toy world: what is drawn, what is asked, what counts as an answer."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np
import pytest

from vellumd.demo import exam, world
from vellumd.demo.painter import Painter, to_bytes
from vellumd.demo.scenes import SIDE, Scenes
from vellumd.demo.world import KINDS, Edits

N = 200
OPEN = ("add", "elsewhere", "another")
"""Kinds whose words leave a choice."""


def drawn(kind: str, seed: int = 0, **options: bool) -> Edits:
    return world.draw(kind, N, np.random.default_rng(seed), **options)


def equal(one: Scenes, other: Scenes) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Scenes)
    )


@pytest.mark.parametrize("kind", KINDS)
class TestDraw:
    """Each kind's edits."""

    def test_equal_seeds_draw_equal_edits(self, kind: str) -> None:
        """A seed decides pictures, prompts and answers; another one decides otherwise."""
        one, again, other = drawn(kind), drawn(kind), drawn(kind, seed=1)
        assert one.prompts == again.prompts != other.prompts
        assert equal(one.target, again.target)
        pairs = zip(one.references, again.references, strict=True)
        assert all(equal(a, b) for a, b in pairs)
        assert not equal(one.target, other.target)

    def test_pictures_of_an_edit(self, kind: str) -> None:
        """An edit has as many pictures as its kind says, and one to three shapes in each."""
        edits = drawn(kind)
        assert len(edits) == len(edits.prompts) == len(edits.target) == N
        assert len(edits.references) == KINDS[kind].pictures
        for scenes in edits.references:
            assert set(scenes.taken.sum(axis=1)) <= {1, 2, 3}

    def test_held_out_phrasings_are_new(self, kind: str) -> None:
        """No phrasing of the exam with held-out words is one of training, of this kind or another;
        nor does it ask, filled in, what training asks."""
        known = {words for one in KINDS.values() for words in (*one.phrasings, *one.trained)}
        new = KINDS[kind].held_out
        assert new
        assert not known & set(new)
        held_out = set(drawn(kind, held_out=True).prompts)
        assert not (set(drawn(kind).prompts) | set(drawn(kind, training=True).prompts)) & held_out

    def test_the_target_is_an_answer(self, kind: str) -> None:
        """The drawn answer is among those accepted, and more than one is where words are open."""
        edits = drawn(kind)
        painter = Painter()
        for row in range(20):
            answers = edits.answers(row)
            target = painter(edits.target[row : row + 1])
            assert (painter(answers) == target).all(axis=(1, 2, 3)).sum() == 1
            assert (len(answers) > 1) == (kind in OPEN)

    def test_every_answer_changes_the_picture(self, kind: str) -> None:
        """Each answer differs clearly from picture 1, in fifty pixels at least."""
        edits, painter = drawn(kind)[: N // 2], Painter()
        given = painter(edits.references[0])
        answers = [(row, painter(edits.answers(row))) for row in range(10)]
        for before, after in [(given, painter(edits.target)), *((given[n], a) for n, a in answers)]:
            changed = np.abs(after - before).max(axis=-1) > 0.2
            assert changed.sum(axis=(1, 2)).min() >= 50

    def test_shapes_stand_out(self, kind: str) -> None:
        """All shapes of all pictures and answers can be seen on their ground."""
        edits = drawn(kind)
        rows = np.arange(N)[:, None]
        for scenes in (*edits.references, edits.target):
            assert (scenes.readable[rows, scenes.colour] | ~scenes.taken).all()


@pytest.mark.parametrize("kind", ["backdrop", "compose"])
def test_a_ground_turned_around_is_no_other_ground(kind: str) -> None:
    """From red to blue leftwards is from blue to red rightwards: nothing to ask for."""
    edits = world.draw(kind, 4000, np.random.default_rng(0))
    one, two = (scenes.ground for scenes in edits.references[:2])
    swapped = (one[:, :2] == two[:, 1::-1]).all(axis=1)
    assert not (swapped & ((one[:, 2] - two[:, 2]) % 8 == 4)).any()


def test_captions_are_noisy_in_training_only() -> None:
    """About a quarter of the captions answer wrongly where that is asked for, else none."""
    clean, noisy = drawn("caption"), drawn("caption", training=True)
    astray = noisy.target.at(noisy.cell)[0] != clean.target.at(clean.cell)[0]
    assert ((noisy.target.at(noisy.cell)[2] != clean.target.at(clean.cell)[2]) == astray).all()
    assert clean.prompts == noisy.prompts
    assert 0.15 < astray.mean() < 0.4


@pytest.mark.parametrize("kind", ["add", "replace"])
def test_training_asks_in_more_ways_than_the_judge(kind: str) -> None:
    """The judge's questions stay what they were when a training learns other words."""
    judged, trained = drawn(kind), drawn(kind, training=True)
    words = {"add": " more please", "replace": "make a "}[kind]
    assert not any(words in prompt for prompt in judged.prompts)
    assert 0.1 < sum(words in prompt for prompt in trained.prompts) / N < 0.3


def test_the_judges_questions_are_those_of_the_figures() -> None:
    """What ships was judged by them: its figures hold as long as these do."""
    asked = "\n".join(question.prompt for question in exam.draw(520, 0))
    assert hashlib.sha256(asked.encode()).hexdigest().startswith("23147c048b61f3ce")


def test_articles_are_right() -> None:
    """It is an orange star, and a red one."""
    prompts = drawn("add", seed=3).prompts + drawn("caption", seed=3).prompts
    assert any("an orange" in prompt for prompt in prompts)
    assert not any("a orange" in prompt or "an red" in prompt for prompt in prompts)


def test_painted_pictures() -> None:
    """Pixels are from 0 to 1; a gray picture's channels are alike; bytes round."""
    edits = drawn("gray")
    pictures = Painter()(edits.target[:8])
    assert pictures.shape == (8, SIDE, SIDE, 3)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert np.ptp(pictures, axis=-1).max() < 1e-5
    assert to_bytes(np.array([-0.5, 0.5, 1.5])).tolist() == [0, 128, 255]
