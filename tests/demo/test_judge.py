"""The judge's command, as far as it needs no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import vellumd
from vellumd import model_card
from vellumd.demo import exam, judge
from vellumd.demo.judge import Recipe
from vellumd.demo.verdict import Judge


class Knowing:
    """An engine that knows the exam: with a LoRA it is always right, else it does nothing."""

    def __init__(self, model: str, **settings: Any) -> None:
        assert model == "demo"
        self.seeds: list[int] = []
        painter = Judge()
        self._answers = {
            question.noise: Image.fromarray(
                painter.paint(question.edits.target[question.row : question.row + 1])[0]
            )
            for question in exam.draw(26, 4)
        }

    def load(self) -> SimpleNamespace:
        """Knows one tier."""
        return SimpleNamespace(tiers=("standard",))

    def unload(self) -> None:
        """Holds nothing."""

    def generate(
        self, images: list[Image.Image], prompt: str, *, seed: int, loras: list[Any], **_: Any
    ) -> Image.Image:
        """The answer that belongs to the noise's seed, or picture 1."""
        return self._answers[seed] if loras else images[0]


def test_an_exam_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe's own result, what of it `--against` lost and gained, and what really ran."""
    monkeypatch.setattr(vellumd, "QwenImageEditEngine", Knowing)
    exams = ["--n", "26", "--seed", "4", "--tier", "swift", "--json"]
    judge.main([*exams, "--against", "fastest"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["success"], found["n"], found["steps"], found["seed"]) == (0, 26, 8, 4)
    assert {score["n"] for score in found["kinds"].values()} == {2}
    assert found["recipe"]["loras"] == [] and found["against"]["preset"] == "fastest"
    # All that the second recipe gets right is lost by the first, which is what is judged.
    assert (found["comparison"]["lost"], found["comparison"]["gained"]) == (26, 0)
    assert found["comparison"]["difference"] == -1
    assert found["tier"] == "standard"
    assert "swift is not there" in told.err
    judge.main([*exams, "--preset", "fastest"])
    assert json.loads(capsys.readouterr().out)["success"] == 1


def test_the_base_recipe_is_the_cards() -> None:
    """Without a preset there is no LoRA, and the model's card says steps and guidance."""
    card = model_card.read("demo")
    assert Recipe.of() == Recipe(
        preset=None, steps=card.steps, true_cfg_scale=card.true_cfg_scale, loras=()
    )
    assert Recipe.of(steps=4, cfg=1.5).steps == 4
    assert Recipe.of(steps=4, cfg=1.5).true_cfg_scale == 1.5


def test_a_presets_recipe() -> None:
    """A preset brings its LoRA, steps and guidance; what is given wins."""
    fastest = Recipe.of("fastest")
    assert (fastest.steps, fastest.true_cfg_scale, fastest.loras) == (8, 1.0, ("lightning-8",))
    assert Recipe.of("fastest", steps=4).steps == 4


def test_table() -> None:
    """People see each kind's share, the whole, what was asked how, and a comparison's flips."""
    text = judge.table(
        {
            "kinds": {"gray": {"success": 0.5, "n": 2, "interval": (0.1, 0.9)}},
            "success": 0.5, "n": 2, "interval": (0.1, 0.9), "seconds_per_edit": 0.25,
            "tier": "turbo", "held_out": True, "seed": 4,
            "recipe": Recipe.of("fastest").model_dump(),
            "against": Recipe.of("balanced").model_dump(),
            "comparison": {
                "lost": 3, "gained": 1, "difference": -0.02, "interval": (-0.06, 0.01),
                "psnr": 30.0, "psnr_low": 20.0,
            },
        }
    )  # fmt: skip
    assert "gray" in text
    assert "0.100-0.900" in text
    told = "guidance 1, tier turbo, phrasings held out of training, seed 4, 0.25 s an edit"
    assert f"fastest, 8 steps, {told}" in text
    assert "against balanced: 3 lost, 1 gained" in text


def test_the_table_tells_the_tier_that_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the one that was asked for, where it is not there; and which phrasings were asked."""
    monkeypatch.setattr(vellumd, "QwenImageEditEngine", Knowing)
    judge.main(["--n", "26", "--seed", "4", "--tier", "swift"])
    assert "tier standard, phrasings of training, seed 4" in capsys.readouterr().out


def test_a_kind_named_twice_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each edit counts once: the same ones again would tell nothing, and narrow the interval."""
    asked: list[tuple[str, int]] = []

    class Listening(Knowing):
        def generate(self, images: list[Image.Image], prompt: str, **rest: Any) -> Image.Image:
            asked.append((prompt, rest["seed"]))
            return images[0]

    monkeypatch.setattr(vellumd, "QwenImageEditEngine", Listening)
    judge.main(["--n", "9", "--kinds", "move,add,move", "--json"])
    assert json.loads(capsys.readouterr().out)["kinds"].keys() == {"move", "add"}
    assert len(set(asked)) == 9


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--preset", "nope"], ["--tier", "nope"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    """What makes no exam is refused before any model is loaded."""
    with pytest.raises(SystemExit) as ended:
        judge.main(arguments)
    assert ended.value.code == 2


def test_judging_needs_no_torch() -> None:
    """World, verdict and exam load without torch: they judge any machine's pictures."""
    code = "import sys, vellumd.demo.judge, vellumd.demo.gallery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
