"""`engine.recipe = "auto"`: each recipe that runs is timed once, and the fastest is taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vellumd import errors
from vellumd.engine import precision, tuning
from vellumd.settings import EngineSettings

CPU = torch.device("cpu")
DEFAULT = EngineSettings()
CONFIG: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel", "num_attention_heads": 2,
    "attention_head_dim": 32, "joint_attention_dim": 64, "axes_dims_rope": [8, 12, 12],
    "num_layers": 60, "zero_cond_t": True,
}  # fmt: skip


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What measuring tells; pictures are small."""
    monkeypatch.setattr(tuning, "AREA", 128 * 128)
    return []


def known(
    cache: Path, beats: list[tuple[int, int]], settings: EngineSettings = DEFAULT
) -> tuning.Times:
    return tuning.known(settings, CPU, CONFIG, cache, lambda done, of: beats.append((done, of)))


def test_each_recipe_that_runs_is_timed_once(tmp_path: Path, beats: list[tuple[int, int]]) -> None:
    """The second start reads what the first one measured; casting is always among them."""
    cache = tmp_path / "not there yet"
    found = known(cache, beats)
    assert list(found) == [recipe.name for recipe in sorted(
        tuning.candidates(DEFAULT, CPU), key=lambda recipe: found[recipe.name])]  # fmt: skip
    assert "fp8-weights" in found
    assert beats == [(done, len(found)) for done in range(len(found))]
    assert known(cache, beats) == found
    assert len(beats) == len(found)


DAMAGE = (
    "", "[]", "\x00\xff", "null", "{}", "3", '"{}"', '{"fp8-rows": "fast"}', '{"other": 1.0}',
    '{"fp8-rows": NaN}', '{"fp8-rows": -1.0}', '{"fp8-rows": null}',
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("where", ["the file", "its entry"])
def test_a_damaged_file_is_measured_anew(
    tmp_path: Path,
    beats: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    where: str,
) -> None:
    """Whatever is in it ends no start and chooses nothing."""
    times = {"fp8-weights": 0.25}
    monkeypatch.setattr(tuning, "measured", lambda *_: times)
    text = damage if where == "the file" else f'{{"{key()}": {damage}}}'
    (tmp_path / tuning.FILE).write_bytes(text.encode("latin-1"))
    assert known(tmp_path, beats) == times
    monkeypatch.delattr(tuning, "measured")
    assert known(tmp_path, beats) == times


def key(settings: EngineSettings = DEFAULT) -> str:
    return tuning.about(settings, CPU, CONFIG, tuning.candidates(settings, CPU))


def test_a_cache_that_cannot_be_written(tmp_path: Path, beats: list[tuple[int, int]]) -> None:
    """Costs the next start its time, and this one nothing."""
    (tmp_path / "file").touch()
    for _ in range(2):
        assert known(tmp_path / "file", beats)
    assert beats[: len(beats) // 2] * 2 == beats


@pytest.mark.parametrize("fails", [["fp8-rows"], ["fp8-tensor", "fp8-weights"]])
def test_a_recipe_that_fails_at_the_real_size(
    tmp_path: Path,
    beats: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    fails: list[str],
) -> None:
    """Is left out, as one that its small probe refuses; it does not end the start."""
    hold = precision.hold

    def held(model: Any, recipe: precision.Recipe) -> None:
        if recipe.name in fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        hold(model, recipe)

    monkeypatch.setattr(precision, "hold", held)
    found = known(tmp_path, beats)
    assert sorted([*found, *fails]) == ["fp8-rows", "fp8-tensor", "fp8-weights"]


def test_where_nothing_can_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best that its probe lets run is taken, and the next start tries again."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tuning, "random_transformer", full)
    monkeypatch.setattr(tuning, "candidates", lambda *_: [precision.ROWS, precision.WEIGHTS])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(precision, "choose", lambda *_: precision.Choice(precision.ROWS, {}))
    beats: list[tuple[int, int]] = []
    for _ in range(2):
        choice, times = tuning.choose(
            DEFAULT, Card(), CONFIG, tmp_path, lambda *beat: beats.append(beat)
        )
        assert (choice.recipe, times) == (precision.ROWS, {})
    assert len(beats) == 4


@pytest.mark.parametrize(
    "settings", [{"kernels": "plain"}, {"attention": "math"}, {"forward": "stock"}]
)
def test_another_way_to_run_is_measured_anew(settings: dict[str, Any]) -> None:
    """FP8 products that nothing fuses may lose to weights that are cast."""
    assert key(EngineSettings(**settings)) != key()
    assert key(EngineSettings(kernels="plain", compile=True)) == key()


def test_blocks_are_timed_as_they_will_run(
    tmp_path: Path, beats: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels that are wanted, which here do not run."""
    with pytest.raises(errors.RecipeUnsupported):
        tuning.seconds(precision.WEIGHTS, EngineSettings(attention="fa3"), CPU, CONFIG)
    with pytest.raises(errors.RecipeUnsupported):
        tuning.seconds(precision.WEIGHTS, EngineSettings(kernels="triton"), CPU, CONFIG)
    assert tuning.seconds(precision.WEIGHTS, EngineSettings(attention="math"), CPU, CONFIG) > 0


def test_diffusers_forward_is_not_timed_as_ours() -> None:
    """It fuses nothing, so what lives of that is left out."""
    stock = EngineSettings(forward="stock")
    assert tuning.candidates(stock, CPU) == [precision.WEIGHTS]


def test_another_driver_is_measured_anew(
    tmp_path: Path, beats: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it makes a recipe run, or not: what does not run is not taken from the file."""
    assert "fp8-rows" in known(tmp_path, beats)
    once = len(beats)
    complaint = precision.complaint
    monkeypatch.setattr(
        precision,
        "complaint",
        lambda recipe, device: "no" if recipe is precision.ROWS else complaint(recipe, device),
    )
    assert sorted(known(tmp_path, beats)) == ["fp8-tensor", "fp8-weights"]
    assert len(beats) == once + 2


def test_another_version_is_measured_anew(
    tmp_path: Path, beats: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured holds for that card, those packages and that size alone."""
    known(tmp_path, beats)
    monkeypatch.setattr(tuning, "__version__", "0.0.0")
    once = len(beats)
    known(tmp_path, beats)
    assert len(beats) == 2 * once
    assert len(json.loads((tmp_path / tuning.FILE).read_bytes())) == 2


class Card:
    """Stands where a card's device would: only its type is asked for."""

    type = "cuda"


def test_the_fastest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card, unless a recipe is wanted or the tier is the reference one."""
    times = {"fp8-weights": 0.01, "fp8-rows": 0.02}
    monkeypatch.setattr(tuning, "known", lambda *_: times)
    monkeypatch.setattr(
        precision, "choose", lambda settings, device: precision.Choice(precision.ROWS, {})
    )

    def chosen(tier: Any, recipe: Any, device: Any) -> tuple[str, tuning.Times]:
        settings = EngineSettings(tier=tier, recipe=recipe)
        choice, found = tuning.choose(settings, device, CONFIG, tmp_path, lambda *_: None)
        return choice.recipe.name, found

    assert chosen("standard", "auto", Card()) == ("fp8-weights", times)
    assert chosen("standard", "fp8-rows", Card()) == ("fp8-rows", {})
    assert chosen("reference", "auto", Card()) == ("fp8-rows", {})
    assert chosen("standard", "auto", CPU) == ("fp8-rows", {})


@pytest.mark.parametrize(
    ("card", "budget", "there"), [(80, None, True), (24, None, False), (80, 24, False)]
)
def test_weights_as_they_are_need_room(
    monkeypatch: pytest.MonkeyPatch, card: int, budget: float | None, there: bool
) -> None:
    """They are timed only where an edit with them fits, the card and what may be used of it."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=card * 10**9)
    )
    monkeypatch.setattr(precision, "complaint", lambda *_: None)
    found = tuning.candidates(EngineSettings(vram_budget_gb=budget), Card())
    assert (precision.PLAIN in found) is there
    assert precision.WEIGHTS in found
