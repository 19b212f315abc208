"""`engine.recipe = "auto"`: each recipe that runs is timed once, and the fastest is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vellumd.engine import precision, tuning

CPU = torch.device("cpu")
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


def known(cache: Path, beats: list[tuple[int, int]]) -> tuning.Times:
    return tuning.known(CPU, CONFIG, cache, lambda done, of: beats.append((done, of)))


def test_each_recipe_that_runs_is_timed_once(tmp_path: Path, beats: list[tuple[int, int]]) -> None:
    """The second start reads what the first one measured; casting is always among them."""
    cache = tmp_path / "not there yet"
    found = known(cache, beats)
    assert list(found) == [recipe.name for recipe in sorted(
        tuning.candidates(CPU), key=lambda recipe: found[recipe.name])]  # fmt: skip
    assert "fp8-weights" in found
    assert beats == [(done, len(found)) for done in range(len(found))]
    assert known(cache, beats) == found
    assert len(beats) == len(found)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"x": 1}', b'{"x": {"other": 1.0}}'])
def test_a_damaged_file_is_measured_anew(
    tmp_path: Path, beats: list[tuple[int, int]], damage: bytes
) -> None:
    """Whatever is in it ends no start."""
    (tmp_path / tuning.FILE).write_bytes(damage)
    assert known(tmp_path, beats)
    assert beats


def test_a_cache_that_cannot_be_written_ends_no_start(
    tmp_path: Path, beats: list[tuple[int, int]]
) -> None:
    """A full disk, or a folder of somebody else: each start measures."""
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        assert known(tmp_path / "file", beats)
    assert len(beats) == 2 * len(tuning.candidates(CPU))


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
        precision, "choose", lambda tier, wanted, device: precision.Choice(precision.ROWS, {})
    )

    def chosen(tier: Any, wanted: str, device: Any) -> tuple[str, tuning.Times]:
        choice, found = tuning.choose(tier, wanted, device, CONFIG, tmp_path, lambda *_: None)
        return choice.recipe.name, found

    assert chosen("standard", "auto", Card()) == ("fp8-weights", times)
    assert chosen("standard", "fp8-rows", Card()) == ("fp8-rows", {})
    assert chosen("reference", "auto", Card()) == ("fp8-rows", {})
    assert chosen("standard", "auto", CPU) == ("fp8-rows", {})


def test_weights_as_they_are_need_room() -> None:
    """They are timed only on a card that holds an edit with them."""
    assert precision.PLAIN not in tuning.candidates(CPU)
    assert precision.WEIGHTS in tuning.candidates(CPU)
