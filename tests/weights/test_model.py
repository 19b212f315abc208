"""Where the parts of a model are found, and what decides zero_cond_t."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.weights import files
from tests.weights.files import CONFIG, ENCODER, configured, model_folder, sentinel, single
from vellumd import errors, model_card
from vellumd.models import EditRequest, LoraRef
from vellumd.presets import Presets
from vellumd.settings import EngineSettings, Settings
from vellumd.weights import shapes
from vellumd.weights.checkpoint import Layout
from vellumd.weights.model import Model, open_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole diffusers folder, tiny."""
    return model_folder(tmp_path / "Qwen-Image-Edit-2511")


def test_a_folder(folder: Path) -> None:
    """Everything is in it, and its config.json tells zero_cond_t."""
    found = open_model(folder)
    assert [part.layout for part in found.parts] == [Layout.DIFFUSERS] * 3
    assert (found.zero_cond_t, found.told_by, found.base) == (True, "config", folder)
    assert len(found.files) == 3
    assert found.nbytes == sum(part.nbytes for part in found.parts)


@pytest.mark.parametrize(
    ("config", "mark", "said", "flag", "by"),
    [
        (True, False, None, True, "config"),
        (False, False, None, False, "config"),
        (True, True, None, True, "config"),
        (None, True, None, True, "sentinel"),
        (None, False, True, True, "settings"),
        (None, False, False, False, "settings"),
        (False, True, True, True, "settings"),
        (True, False, False, False, "settings"),
    ],
)
def test_what_tells_zero_cond_t(
    folder: Path, config: bool | None, mark: bool, said: bool | None, flag: bool, by: str
) -> None:
    """What the user says, then config.json, then the mark."""
    configured(folder, zero_cond_t=config)
    if mark:
        sentinel(folder / "transformer/model.safetensors")
    found = open_model(folder, zero_cond_t=said)
    assert (found.zero_cond_t, found.told_by) == (flag, by)


def test_nothing_tells_zero_cond_t(folder: Path) -> None:
    """Without an answer the model is refused, and the sentence says what to set; so it is
    where config.json and the mark contradict each other."""
    configured(folder, zero_cond_t=None)
    with pytest.raises(errors.ModelInvalid, match=r"Set engine.zero_cond_t: true for .*2511"):
        open_model(folder)
    configured(folder, zero_cond_t=False)
    sentinel(folder / "transformer/model.safetensors")
    with pytest.raises(errors.ModelInvalid, match=r"says true. Set engine.zero_cond_t"):
        open_model(folder)


def test_a_single_files_base_does_not_tell(folder: Path) -> None:
    """config.json of the base is another transformer's: the file's own mark counts, or none."""
    file = single(folder)
    with pytest.raises(errors.ModelInvalid, match=r"Set engine\.zero_cond_t"):
        open_model(file, folder)
    configured(folder, zero_cond_t=False)
    sentinel(file)
    assert open_model(file, folder).told_by == "sentinel"


def test_a_comfy_folder(folder: Path) -> None:
    """Text encoder and VAE lie beside the file, known by keys; the largest of several is taken."""
    file = single(folder)
    models = file.parent.parent
    files.write(models / "text_encoders/t5.safetensors", {"x": ("BF16", (10**6,))})
    (models / "vae/broken.safetensors").write_bytes(b"x")
    sentinel(file)
    found = open_model(file, folder)
    assert [part.files[0].parent.name for part in found.parts] == [
        "clip",
        "vae",
        "diffusion_models",
    ]
    encoder = {name: ("F32", shape) for name, shape in shapes.text_encoder(ENCODER).items()}
    files.write(models / "text_encoders/qwen.safetensors", encoder)
    assert open_model(file, folder).text_encoder.files[0].parent.name == "text_encoders"


def test_the_bases_own_weights_come_first(folder: Path) -> None:
    """A base that has text encoder and VAE needs nothing beside the file; one above is found."""
    file = single(folder, parts=False)
    sentinel(file)
    assert open_model(file, folder).vae.files == (folder / "vae/model.safetensors",)
    inside = shutil.move(file, folder / "transformer/edit.safetensors")
    assert open_model(Path(inside)).base == folder


def test_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named from where one stands has folders above it too."""
    file = single(folder)
    sentinel(file)
    monkeypatch.chdir(file.parent)
    assert open_model(Path(file.name), folder).vae.files
    monkeypatch.chdir(folder / "transformer")
    with pytest.raises(errors.ModelMissing):
        open_model(Path(os.devnull))


@pytest.mark.parametrize(
    ("lost", "error", "said"),
    [
        ("model_index.json", errors.ModelInvalid, "has no model_index.json"),
        ("processor", errors.ModelInvalid, "processor is missing"),
        ("scheduler", errors.ModelInvalid, "scheduler is missing"),
        ("vae/config.json", errors.ModelInvalid, "vae has no whole config.json"),
        ("vae/model.safetensors", errors.ModelInvalid, "vae has no .safetensors file"),
    ],
)
def test_an_incomplete_folder(
    folder: Path, lost: str, error: type[errors.VellumError], said: str
) -> None:
    """What is missing is named."""
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(error, match=said):
        open_model(folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "num_layers", "2"),
        ("transformer", "num_layers", 0),
        ("transformer", "num_layers", None),
        ("transformer", "num_layers", 10**9),
        ("transformer", "attention_head_dim", "a"),  # times a number it would be a long text
        ("transformer", "attention_head_dim", -8),
        ("transformer", "patch_size", 10**3000),
        ("transformer", "in_channels", 64.0),
        ("text_encoder", "hidden_size", [12]),
        ("text_encoder", "num_hidden_layers", True),
        ("text_encoder", "vision_config", {"depth": 0}),
    ],
)
def test_a_configuration_that_cannot_be(folder: Path, part: str, key: str, value: object) -> None:
    """It is told before anything is computed from it."""
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(errors.ModelInvalid, match=f"{part} has no whole config"):
        open_model(folder)


def test_a_configuration_that_leaves_out_what_is_usual(folder: Path) -> None:
    """It is as diffusers reads it, for whoever looks for a number there."""
    config = open_model(folder).configs["transformer"]
    assert (config["num_layers"], config["in_channels"]) == (CONFIG["num_layers"], 64)


@pytest.mark.parametrize("part", ["transformer", "text_encoder/model.safetensors"])
def test_what_cannot_be_read(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's user may not look into a folder: that is said, not that it is empty."""
    before, home = os.stat, folder / part

    def forbidden(path: object, *given: object, **named: object) -> object:
        if isinstance(path, (str, os.PathLike)) and Path(os.fspath(path)) == home:
            raise PermissionError(13, "Permission denied", str(path))
        return before(path, *given, **named)  # type: ignore[arg-type]

    listing = os.listdir
    monkeypatch.setattr(os, "stat", forbidden)
    monkeypatch.setattr(os, "listdir", lambda path: forbidden(path) and listing(path))
    with pytest.raises(errors.ModelInvalid, match=r"cannot be read \(Permission denied\)"):
        open_model(folder)
    monkeypatch.setattr(Path, "exists", lambda path: forbidden(home))
    with pytest.raises(errors.ModelInvalid, match=r"2511' cannot be read \(Permission denied\)"):
        model_card.read(str(folder))


@pytest.mark.parametrize("file", ["/etc/*", "../../*", "**", "a\\\\b", ""])
def test_a_card_whose_loras_lie_elsewhere(folder: Path, file: str) -> None:
    """A role names a file in the model's own folder of them."""
    (folder / "vellumd.json").write_text(json.dumps({"loras": {"x": {"file": file}}}))
    with pytest.raises(errors.ModelInvalid, match="is not a model card"):
        model_card.read(str(folder))


def test_an_incomplete_file(folder: Path, tmp_path: Path) -> None:
    """A file without base, with a wrong one, and without the other parts: what to set is said."""
    file = single(folder)
    with pytest.raises(errors.ModelMissing, match=r"Set engine.base"):
        open_model(file)
    with pytest.raises(errors.ModelMissing, match=r"engine.base has no model_index.json"):
        open_model(file, tmp_path)
    (file.parent.parent / "vae/qwen.safetensors").unlink()
    with pytest.raises(errors.ModelMissing, match=r"no vae to edit.safetensors"):
        open_model(file, folder)
    with pytest.raises(errors.ModelMissing, match="There is no model 'gone'"):
        open_model(tmp_path / "gone")


def of_another_model(folder: Path) -> Model:
    """A folder whose config.json promises a third block."""
    configured(folder, num_layers=3)
    return open_model(folder)


def test_a_configuration_of_another_model(folder: Path) -> None:
    """Weights are held against it before anything is loaded."""
    with pytest.raises(errors.ModelInvalid, match=r"transformer lacks transformer_blocks.2"):
        of_another_model(folder)


FUSED = "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_8steps_v1.0.safetensors"


@pytest.fixture
def fused(folder: Path) -> EngineSettings:
    """A file with a Lightning LoRA inside, and LoRAs beside it."""
    file = single(folder)
    file = file.rename(file.with_name(FUSED))
    loras = file.parent.parent / "loras"
    for name in ("Qwen-Image-Edit-2511-Lightning-4steps", "Other-Lightning-8steps", "style"):
        files.write(loras / f"{name}.safetensors", {"x.lora_A.weight": ("BF16", (1, 1))})
    return EngineSettings(model=str(file), base=str(folder))


def resolve(engine: EngineSettings, **fields: object) -> object:
    """What a request becomes; the LoRAs and the scheduler of it, and the warnings."""
    presets = Presets(Settings(engine=engine), model_card.of(engine))
    image = {"sha256": "0" * 64, "width": 64, "height": 64, "type": "image/png"}
    edit, notices = presets.resolve(EditRequest.parse({"images": [image], "prompt": "x", **fields}))
    return [lora.name for lora in edit.loras], edit.scheduler, [n.code for n in notices]


def test_the_card_of_a_single_file(fused: EngineSettings) -> None:
    """It goes by its name, and says what is inside."""
    card = model_card.of(fused)
    assert (card.name, card.fused) == (Path(FUSED).stem, "lightning-8")
    assert model_card.find_lora(fused.model, card, {}, "style", fused.base) is not None


def test_a_fused_lora_always_takes_part(fused: EngineSettings) -> None:
    """Presets that ask for it just work; one that does not is told that it is inside."""
    assert resolve(fused, preset="balanced") == (["lightning-8"], "lightning", [])
    original = resolve(fused, preset="original")
    assert original == (["lightning-8"], "lightning", ["lora_fused"])
    assert resolve(fused, loras=[{"name": "style"}]) == (
        ["lightning-8", "style"],
        "lightning",
        ["lora_fused"],
    )


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ([{"name": "lightning-4"}], "'lightning-4' cannot be added"),
        ([{"name": "Other-Lightning-8steps"}], "'Other-Lightning-8steps' cannot be added"),
        ([{"name": "lightning-8", "scale": 0.5}], "scale cannot be changed"),
    ],
)
def test_a_second_lightning_lora(fused: EngineSettings, loras: list[object], said: str) -> None:
    """By role and by file, a second one is refused when it is asked for."""
    with pytest.raises(errors.UnknownLora, match=said):
        resolve(fused, loras=loras)


def test_a_lora_twice(folder: Path) -> None:
    """One file under two names would count twice."""
    file = folder / "loras/Qwen-Image-Edit-2511-Lightning-8steps.safetensors"
    files.write(file, {"x.lora_A.weight": ("BF16", (1, 1))})
    engine = EngineSettings(model=str(folder))
    with pytest.raises(errors.UnknownLora, match="are the same LoRA"):
        resolve(engine, loras=[LoraRef(name="lightning-8"), LoraRef(name=file.stem)])
