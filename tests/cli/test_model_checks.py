"""What doctor says of a model: each silent mistake is named, a sound model passes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.weights import files
from tests.weights.files import configured, sentinel, single
from vellumd.cli import model_checks
from vellumd.hookspecs import Check
from vellumd.models import LoraRef
from vellumd.settings import EngineSettings, Preset, Settings

LORA = {
    "transformer_blocks.0.attn.to_q.lora_down.weight": ("BF16", (4, 16)),
    "transformer_blocks.0.attn.to_q.lora_up.weight": ("BF16", (16, 4)),
}
EIGHT = "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16"
FUSED = "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_8steps_v1.0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model with a Lightning LoRA."""
    home = files.model_folder(tmp_path / "Qwen-Image-Edit-2511")
    files.write(home / f"loras/{EIGHT}.safetensors", LORA)
    return home


def settings(model: Path, loras: dict[str, Path] | None = None, **engine: object) -> Settings:
    """Settings with that model and those LoRAs."""
    named = {role: str(file) for role, file in (loras or {}).items()}
    return Settings(
        engine=EngineSettings.model_validate({"model": str(model), "loras": named, **engine})
    )


def told(checked: Settings) -> list[Check]:
    """All that is said of model and LoRAs, for hardly any work."""
    began = time.process_time()
    found = [*model_checks.model(checked), *model_checks.loras(checked)]
    assert time.process_time() - began < 2
    return found


def faults(checked: Settings) -> list[str]:
    """The texts of what must be mended."""
    return [check.text for check in told(checked) if not check.ok]


def test_presets_that_no_request_can_use(folder: Path) -> None:
    """Named with what to do; the shipped ones that a model has no LoRA for as well."""
    assert [*model_checks.presets(settings(folder))] == []
    (folder / f"loras/{EIGHT}.safetensors").unlink()
    (told,) = model_checks.presets(settings(folder))
    assert not told.ok and "'balanced' cannot be used" in told.text


def test_a_sound_folder_passes(folder: Path) -> None:
    """Layouts, sizes, flag, scheduler and LoRA are told."""
    texts = [check.text for check in told(settings(folder))]
    assert faults(settings(folder)) == []
    for expected in (
        "model Qwen-Image-Edit-2511", "transformer: diffusers_bf16",
        "zero_cond_t is on, says config.json", "the scheduler is the model's own",
        "weights take", f"LoRA lightning-8: {EIGHT}.safetensors, lightning scheduler, 1 linears",
        "LoRA lightning-4: no file",
    ):  # fmt: skip
        assert any(text.startswith(expected) for text in texts), expected


def test_the_demo_passes_and_says_what_it_is() -> None:
    """Without a model the demo is named as such."""
    (found,) = told(Settings())
    assert found.ok
    assert "model demo (a toy: " in found.text


def test_a_damaged_model_is_named(folder: Path, tmp_path: Path) -> None:
    """Whatever the engine would refuse, doctor says first."""
    file = folder / "transformer/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    (fault,) = faults(settings(folder))
    assert fault.startswith("The file model.safetensors (transformer) is damaged: it is cut short")
    assert fault.endswith("Check the download and [engine].")
    assert "There is no model 'no'" in faults(settings(tmp_path / "no"))[0]
    assert "has no model_index.json" in faults(settings(tmp_path))[0]


def test_zero_cond_t(folder: Path) -> None:
    """Missing, off where the name says 2511, and against the file's mark."""
    configured(folder, zero_cond_t=None)
    (fault,) = faults(settings(folder))
    assert "Set engine.zero_cond_t" in fault
    configured(folder, zero_cond_t=False)
    (fault,) = faults(settings(folder))
    assert fault == (
        "zero_cond_t is off, says config.json; 2511 needs it true: set engine.zero_cond_t"
    )
    sentinel(folder / "transformer/model.safetensors")
    (fault,) = faults(settings(folder, zero_cond_t=False))
    assert "the file's mark says on: set engine.zero_cond_t = true" in fault
    assert faults(settings(folder, zero_cond_t=True)) == []
    older = folder.rename(folder.with_name("Qwen-Image-Edit-2509"))
    assert "2509 needs it false" in faults(settings(older, zero_cond_t=True))[0]


def test_causal(folder: Path) -> None:
    """A model that is called causal says that it is, or somebody does."""
    other = folder.rename(folder.with_name("Qwen-Image-Edit-Causal"))
    (fault,) = faults(settings(other))
    assert "set engine.causal" in fault
    assert faults(settings(other, causal=True)) == []


def test_a_model_before_2511(folder: Path) -> None:
    """Off is right where the name does not say otherwise, and is told."""
    configured(folder, zero_cond_t=False)
    other = folder.rename(folder.with_name("Qwen-Image-Edit"))
    assert faults(settings(other)) == []
    assert any("right for models before 2511" in check.text for check in told(settings(other)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"base_shift": 1.0986, "max_shift": 1.0986, "shift_terminal": None}, "is Lightning's"),
        ({}, "missing or damaged"),
    ],
)
def test_the_schedulers_file(folder: Path, content: dict[str, object], said: str) -> None:
    """Lightning's schedule as the model's own spoils all edits without a LoRA."""
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(content))
    (fault,) = faults(settings(folder))
    assert said in fault


def test_plain_fp8_is_told(folder: Path) -> None:
    """The predecessor's folder works, and it is said what it costs."""
    cast = {name: ("F8_E4M3", shape) for name, (_, shape) in files.transformer().items()}
    files.write(folder / "transformer/model.safetensors", cast)
    assert faults(settings(folder)) == []
    texts = [check.text for check in told(settings(folder))]
    assert any("transformer: predecessor_fp8" in text for text in texts)
    assert any("FP8 without scales" in text and "LoRAs stay beside" in text for text in texts)


def test_a_fused_file(folder: Path) -> None:
    """What is inside is told, and a second Lightning LoRA is a fault."""
    lora = folder / f"loras/{EIGHT}.safetensors"
    file = single(folder)
    sentinel(file)
    file = file.rename(file.with_name(f"{FUSED}.safetensors"))
    found = settings(file, {"lightning-4": lora, "lightning-8": lora}, base=str(folder))
    assert any("lightning-8 is inside the weights" in check.text for check in told(found))
    assert faults(settings(file, base=str(folder))) == []
    found = settings(file, {"lightning-4": lora}, base=str(folder))
    (fault,) = faults(found)
    assert "a second Lightning LoRA cannot be added" in fault


def test_loras_are_held_against_their_role(folder: Path, tmp_path: Path) -> None:
    """A wrong number of steps, a wrong role, another model's, none, and one file twice."""
    four = files.write(tmp_path / "Lightning-4steps.safetensors", LORA)
    plain = files.write(tmp_path / "plain.safetensors", {"x.weight": ("BF16", (1,))})
    other = files.write(
        tmp_path / "other.safetensors",
        {f"double_{name}": entry for name, entry in LORA.items()},
    )
    fast = files.write(tmp_path / "Lightning-4steps-b.safetensors", LORA)
    named = {
        "lightning-8": four, "style": fast, "odd": plain, "gone": tmp_path / "gone",
        "foreign": other, "twin": plain,
    }  # fmt: skip
    first, *others = sorted(faults(settings(folder, named)))
    assert first.startswith("LoRA foreign: The LoRA other.safetensors is made for another model")
    assert others == [
        "LoRA gone: its file is missing; correct [engine.loras]",
        "LoRA lightning-8: the file is made for 4 steps",
        "LoRA odd: The LoRA plain.safetensors holds what is no LoRA (x.weight).",
        "LoRA style: a Lightning file needs the role lightning-4, for its scheduler",
        "LoRA twin: the same file as odd; together they count twice",
    ]


def test_loras_of_presets(folder: Path) -> None:
    """Those that a configured preset names are looked at too; one that is not here is told."""
    files.write(folder / "loras/odd.safetensors", {"x.weight": ("BF16", (1,))})
    files.write(folder / "loras/style.safetensors", LORA)
    presets = {name: Preset(loras=(LoraRef(name=name),)) for name in ("odd", "style", "gone")}
    checked = settings(folder).model_copy(update={"presets": presets})
    assert faults(checked) == [
        "LoRA odd: The LoRA odd.safetensors holds what is no LoRA (x.weight).",
    ]
    (gone,) = model_checks.presets(checked)
    assert gone.text.startswith("presets.gone: The LoRA 'gone' is not here.")


def test_a_lightning_role_with_another_file(folder: Path, tmp_path: Path) -> None:
    """A renamed file may be right, so it is a note: the scheduler goes by the role."""
    named = {"lightning-8": files.write(tmp_path / "style.safetensors", LORA)}
    assert faults(settings(folder, named)) == []
    texts = [check.text for check in told(settings(folder, named))]
    assert any("is no Lightning file by its name" in text for text in texts)
