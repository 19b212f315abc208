"""Presets: what a request leaves open is filled in one place, once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vellumd import errors, model_card, platform
from vellumd.model_card import ModelCard
from vellumd.models import EditRequest, ImageRef, ResolvedEdit
from vellumd.preset_file import BYTES, FILE, MOST, PresetFile
from vellumd.presets import Presets
from vellumd.settings import Settings

PICTURE = ImageRef(sha256="a" * 64, width=64, height=48)
CARD = model_card.read("demo").model_copy(update={"preset": None})


def resolve(settings: dict[str, Any] | None = None, card: ModelCard = CARD, **fields: Any) -> (
    ResolvedEdit
):  # fmt: skip
    request = EditRequest.parse({"images": [PICTURE], "prompt": "red", **fields})
    return Presets(Settings.model_validate(settings or {}), card).resolve(request)[0]


@pytest.mark.parametrize(
    ("preset", "steps", "scale", "scheduler"),
    [
        (None, 8, 3.0, "lightning"),
        ("fastest", 8, 1.0, "lightning"),
        ("balanced", 8, 3.0, "lightning"),
        ("original", 28, 4.0, "base"),
    ],
)
def test_shipped_presets(preset: str | None, steps: int, scale: float, scheduler: str) -> None:
    """The default is what the predecessor recommended; the schedule follows the LoRA."""
    edit = resolve(preset=preset)
    assert (edit.steps, edit.true_cfg_scale, edit.scheduler) == (steps, scale, scheduler)
    assert edit.preset == (preset or "balanced")


def test_the_default_preset() -> None:
    """What is configured wins over the model's own default, that over `balanced`."""
    card = CARD.model_copy(update={"preset": "fastest"})
    assert resolve(card=card).preset == "fastest"
    assert resolve(card=card, prompt="x", preset="balanced").true_cfg_scale == 3.0
    assert resolve({"engine": {"preset": "original"}}, card).preset == "original"


def test_the_request_wins() -> None:
    """Own fields override; overriding steps changes neither LoRA nor schedule."""
    edit = resolve(preset="fastest", steps=4, seed=5)
    assert (edit.steps, edit.seed, edit.scheduler) == (4, 5, "lightning")
    assert [lora.name for lora in edit.loras] == ["lightning-8"]
    assert resolve(preset="fastest", loras=[]).scheduler == "base"


def test_a_configured_preset_stands_on_the_default_one() -> None:
    """It says only what differs; one with a shipped name changes that one."""
    config = {"presets": {"snow": {"prompt": "make it snow"}, "original": {"steps": 40}}}
    snow = resolve(config, preset="snow", prompt=None)
    assert (snow.prompt, snow.steps, snow.true_cfg_scale) == ("make it snow", 8, 3.0)
    original = resolve(config, preset="original")
    assert (original.steps, original.true_cfg_scale, original.loras) == (40, 4.0, ())


def test_seeds_are_drawn_at_acceptance() -> None:
    """Without a seed each edit gets another one, written down."""
    assert resolve().seed != resolve().seed


def test_the_reference_tier_is_chosen_at_start() -> None:
    """With engine.tier = reference every edit is; a request cannot ask for it alone."""
    assert resolve({"engine": {"tier": "reference"}}, tier="swift").tier == "reference"
    with pytest.raises(errors.UnknownTier):
        resolve(tier="reference")


def test_loras_must_be_there(tmp_path: Path) -> None:
    """By role, by file name or by configuration; a missing file is refused by name."""
    (tmp_path / "loras").mkdir()
    for name in ("Qwen-Edit-Lightning-8steps-V1.0-bf16", "ink"):
        (tmp_path / "loras" / f"{name}.safetensors").touch()
    settings = {"engine": {"model": str(tmp_path), "loras": {"mine": str(tmp_path / "gone")}}}
    card = model_card.read(str(tmp_path))
    assert resolve(settings, card, loras=[{"name": "ink"}]).scheduler == "base"
    assert resolve(settings, card).scheduler == "lightning"
    for missing in ("lightning-4", "mine", "other"):
        with pytest.raises(errors.UnknownLora):
            resolve(settings, card, loras=[{"name": missing}])


def test_the_demos_loras_are_found_by_its_name() -> None:
    """`demo` is a folder like any other: its LoRA's file is there, one it lacks is refused."""
    found = model_card.find_lora(model_card.DEMO, CARD, {}, "lightning-8")
    assert found is not None
    assert found.parent == model_card.DEMO_FOLDER / "loras"
    with pytest.raises(errors.UnknownLora):
        resolve(card=ModelCard(demo=True), loras=[{"name": "lightning-4"}])


def test_what_the_bare_model_is_run_with() -> None:
    """2511's card says 40 steps at 4.0; a model's own card may say otherwise, within bounds."""
    assert (ModelCard().steps, ModelCard().true_cfg_scale) == (40, 4.0)
    for wrong in ({"steps": 0}, {"true_cfg_scale": -1}):
        with pytest.raises(ValidationError):
            ModelCard.model_validate(wrong)


def test_a_model_that_is_missing_has_its_usual_loras(tmp_path: Path) -> None:
    """Jobs wait for its folder; a name that no card knows is refused all the same."""
    settings = {"engine": {"model": str(tmp_path / "gone")}}
    assert resolve(settings, ModelCard()).loras[0].name == "lightning-8"
    with pytest.raises(errors.UnknownLora):
        resolve(settings, ModelCard(), loras=[{"name": "other"}])


def test_the_largest_result_is_the_models(tmp_path: Path) -> None:
    """Its card bounds width times height; the refusal names the bound, also of a preset."""
    assert ModelCard().largest_area == 4096 * 4096
    assert resolve(card=ModelCard(loras={}), loras=[], size="4096x4096").size == "4096x4096"
    for size in ("1024x1536", "1536x1024", "1254x1254", "match", "auto", "fit:16"):
        assert resolve(size=size).size == size
    for size in ("1537x1024", "4096x4096", "400x4000"):
        with pytest.raises(errors.BadSize, match="'demo' makes: 1572864 at most, as 1254x1254"):
            resolve(size=size)
    with pytest.raises(errors.BadSize):
        saved_in(tmp_path).save("poster", {"size": "4096x4096"})


def test_what_of_the_configuration_cannot_be_used(tmp_path: Path) -> None:
    """A preset that every edit would be refused with, and a default that is not there."""
    wrong = {
        "engine": {"preset": "nope"},
        "presets": {"exact": {"tier": "reference"}, "ink": {"loras": [{"name": "ink"}]},
                    "poster": {"size": "4096x4096"}, "snow": {"prompt": "snow"}},
    }  # fmt: skip
    presets = saved_in(tmp_path, wrong)
    default, *others = presets.troubles()
    assert default.startswith("engine.preset: there is no preset 'nope'")
    assert [told.partition(":")[0] for told in others] == [
        "presets.exact", "presets.ink", "presets.poster",
    ]  # fmt: skip
    presets.save("nope", {"prompt": "x"})
    assert not any("nope" in told for told in presets.troubles())
    assert not [*saved_in(tmp_path).troubles()]
    (bare,) = Presets(Settings(), ModelCard(name="bare", loras={})).troubles()
    assert bare.startswith("edits without a preset are refused, as 'balanced' cannot be used.")
    assert "'lightning-8' is not here" in bare


def test_warnings_are_told_at_once() -> None:
    """The demo and more than three pictures are said with the acceptance."""
    request = EditRequest.parse({"images": [PICTURE] * 4, "prompt": "red"})
    _, warnings = Presets(Settings(), CARD).resolve(request)
    assert [warning.code for warning in warnings] == ["demo_model", "many_images"]


def test_a_bad_model_card_is_named(tmp_path: Path) -> None:
    """Not there: model_missing. Not a card: model_invalid. No card: 2511's defaults."""
    with pytest.raises(errors.ModelMissing):
        model_card.read(str(tmp_path / "gone"))
    assert model_card.read(str(tmp_path)).canvas_area == 1024 * 1024
    (tmp_path / "vellumd.json").write_text('{"canvas": 1}')
    with pytest.raises(errors.ModelInvalid):
        model_card.read(str(tmp_path))


def saved_in(folder: Path, settings: dict[str, Any] | None = None) -> Presets:
    """The presets as a daemon with this data folder has them."""
    return Presets(Settings.model_validate(settings or {}), CARD, PresetFile(folder / FILE))


def test_a_saved_preset_outlives_the_daemon(tmp_path: Path) -> None:
    """It is used like any other, replaced as a whole, and there for the next daemon."""
    presets = saved_in(tmp_path)
    made = presets.save("눈 snow-1", {"prompt": "make it snow", "num_steps": 4, "seed": None})
    assert made.public() == {
        "name": "눈 snow-1", "origin": "saved", "usable": True,
        "options": {"prompt": "make it snow", "steps": 4},
    }  # fmt: skip
    request = EditRequest.parse({"images": [PICTURE], "preset": "눈 snow-1"})
    for known in (presets, saved_in(tmp_path)):
        edit, _ = known.resolve(request)
        assert (edit.prompt, edit.steps, edit.true_cfg_scale) == ("make it snow", 4, 3.0)
    presets.save("눈 snow-1", {"prompt": "rain"})
    assert saved_in(tmp_path).get("눈 snow-1").public()["options"] == {"prompt": "rain"}
    presets.delete("눈 snow-1")
    for known in (presets, saved_in(tmp_path)):
        with pytest.raises(errors.UnknownPreset):
            known.resolve(request)
        with pytest.raises(errors.NotFound):
            known.get("눈 snow-1")


@pytest.mark.parametrize(
    ("name", "options", "code", "told"),
    [
        ("a/b", {}, "bad_request", "name"),
        ("#", {}, "bad_request", "name"),
        ("a ", {}, "bad_request", "name"),
        ("x" * 65, {}, "bad_request", "name"),
        ("x", {"stepz": 4}, "bad_request", "stepz: there is no such field; the nearest is ste"),
        ("x", {"output": {"qualty": 4}}, "bad_request", "the nearest is output.quality"),
        ("x", {"images": []}, "bad_request", "images"),
        ("x", {"steps": 1000}, "bad_request", "steps"),
        ("x", {"size": "big"}, "bad_size", "big"),
        ("x", {"prompt": "x" * 20_000}, "bad_request", "prompt"),
        ("x", {"loras": [{"name": "other"}]}, "unknown_lora", "other"),
        ("x", {"tier": "fast"}, "unknown_tier", "fast"),
        ("x", {"tier": "reference"}, "unknown_tier", "reference"),
        ("balanced", {}, "preset_fixed", "balanced"),
        ("mine", {}, "preset_fixed", "mine"),
    ],
)
def test_what_cannot_be_saved(
    tmp_path: Path, name: str, options: dict[str, Any], code: str, told: str
) -> None:
    """Wrong names, options that no request could use, names that are taken: nothing changes."""
    presets = saved_in(tmp_path, {"presets": {"mine": {"steps": 5}}})
    with pytest.raises(errors.VellumError) as caught:
        presets.save(name, options)
    assert caught.value.code == code and told in caught.value.message
    assert not (tmp_path / FILE).exists()


def test_what_cannot_be_changed(tmp_path: Path) -> None:
    """Shipped and configured ones, the one that requests fall back on, one that is not there.

    The default may be saved once where it is missing, but not rewritten for everybody.
    """
    presets = saved_in(tmp_path, {"presets": {"mine": {}}, "engine": {"preset": "base"}})
    presets.save("base", {"steps": 3})
    for name in ("fastest", "mine", "base"):
        with pytest.raises(errors.PresetFixed):
            presets.delete(name)
        with pytest.raises(errors.PresetFixed):
            presets.save(name, {"steps": 5})
    assert presets.resolve(EditRequest.parse({"images": [PICTURE], "prompt": "x"}))[0].steps == 3
    with pytest.raises(errors.NotFound):
        presets.delete("other")


def test_configuration_wins_over_what_was_saved(tmp_path: Path) -> None:
    """A section added later counts; when it goes, the saved one is there again."""
    saved_in(tmp_path).save("mine", {"steps": 3})
    configured = saved_in(tmp_path, {"presets": {"mine": {"steps": 5}}}).get("mine")
    assert (configured.origin, configured.options.steps) == ("configuration", 5)
    assert saved_in(tmp_path).get("mine").options.steps == 3


def test_saved_presets_are_bounded(tmp_path: Path) -> None:
    """In number and in bytes; what is there can still be changed."""
    presets = saved_in(tmp_path)
    for n in range(MOST):
        presets.save(f"p{n}", {"seed": n})
    with pytest.raises(errors.PresetsFull):
        presets.save("one more", {})
    presets.save("p0", {"seed": 7})
    presets = Presets(Settings(), CARD, PresetFile(tmp_path / "other.json"))
    with pytest.raises(errors.PresetsFull):
        for n in range(MOST):
            presets.save(f"p{n}", {"prompt": "x" * 16_000})
    assert 10 < len(presets.named) < 30
    assert (tmp_path / "other.json").stat().st_size <= BYTES


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon starts without it, says so, and keeps what it was."""
    for text in ("{", "[]", '{"presets": {"a": {"stepz": 1}}}', '{"presets": {"a": {"size": 1}}}'):
        (tmp_path / FILE).write_text(text)
        assert "a" not in saved_in(tmp_path).named
        assert (tmp_path / "presets.damaged").read_text() == text
        assert "presets.json is damaged" in caplog.text
        caplog.clear()


def test_a_full_disk_keeps_the_old_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written does not count."""
    presets = saved_in(tmp_path)
    presets.save("mine", {"steps": 3})

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(platform, "replace_durably", full)
    with pytest.raises(errors.StorageFull):
        presets.save("mine", {"steps": 5})
    with pytest.raises(errors.StorageFull):
        presets.delete("mine")
    assert presets.get("mine").options.steps == 3
