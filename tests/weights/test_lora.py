"""LoRAs in every dialect come to the same pairs; those of other models are refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.weights import files
from tests.weights.files import Entry
from vellumd import errors
from vellumd.weights import checkpoint, lora
from vellumd.weights.checkpoint import Checkpoint

LINEARS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.0.proj", "img_in")
SIDES = {"transformer_blocks.0.attn.to_q": (16, 16), "img_in": (16, 64),
         "transformer_blocks.1.img_mlp.net.0.proj": (64, 16)}  # fmt: skip
RANK = 4


@pytest.fixture
def transformer(tmp_path: Path) -> Checkpoint:
    """What LoRAs have to fit."""
    return checkpoint.of(
        "transformer", [files.write(tmp_path / "t.safetensors", files.transformer())]
    )


def written(name: Callable[[str], str], down: str, up: str, alpha: str = "") -> dict[str, Entry]:
    """A LoRA on `LINEARS`, under these names."""
    made: dict[str, Entry] = {}
    for linear in LINEARS:
        rows, columns = SIDES[linear]
        made[f"{name(linear)}.{down}.weight"] = ("BF16", (RANK, columns))
        made[f"{name(linear)}.{up}.weight"] = ("BF16", (rows, RANK))
        if alpha:
            made[f"{name(linear)}.{alpha}"] = ("F32", ())
    return made


DIALECTS: dict[str, dict[str, Entry]] = {
    "diffusers": written(lambda n: f"transformer.{n}", "lora_A", "lora_B"),
    "peft": written(lambda n: f"base_model.model.{n}", "lora_A", "lora_B"),
    "peft, named": written(lambda n: f"base_model.model.{n}", "lora_A.default", "lora_B.default"),
    "bare": written(lambda n: n, "lora_down", "lora_up", "alpha"),
    "old diffusers": written(lambda n: f"transformer.{n}", "lora.down", "lora.up"),
    "comfy": written(lambda n: f"diffusion_model.{n}", "lora_down", "lora_up", "alpha"),
    "comfy, A and B": written(lambda n: f"diffusion_model.{n}", "lora_A", "lora_B"),
    "kohya": written(lambda n: f"lora_unet_{n.replace('.', '_')}", "lora_down", "lora_up", "alpha"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path: Path, transformer: Checkpoint, dialect: str) -> None:
    """Whoever wrote it, the linears, ranks and alphas are found."""
    file = files.write(tmp_path / "style.safetensors", DIALECTS[dialect])
    found = lora.read(file, transformer)
    assert sorted(found.pairs) == sorted(LINEARS)
    assert {pair.rank for pair in found.pairs.values()} == {RANK}
    has_alpha = any("alpha" in name for name in DIALECTS[dialect])
    assert {pair.alpha is not None for pair in found.pairs.values()} == {has_alpha}
    assert found.steps is None


def test_pefts_settings(tmp_path: Path, transformer: Checkpoint) -> None:
    """diffusers keeps alpha in the metadata, one for all and others by module."""
    settings = {
        "transformer.r": RANK, "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"to_q": 2, "attn.to_q": 16},
    }  # fmt: skip
    told = {lora.PEFT_KEY: json.dumps(settings)}
    file = files.write(tmp_path / "x.safetensors", DIALECTS["diffusers"], told)
    pairs = lora.read(file, transformer).pairs
    assert [pairs[linear].alpha for linear in LINEARS] == [16, 8, 8]
    for wrong in ("{", "3", '{"transformer.lora_alpha": "x"}', '{"transformer.use_rslora": true}'):
        files.write(file, DIALECTS["diffusers"], {lora.PEFT_KEY: wrong})
        with pytest.raises(errors.ModelInvalid):
            lora.read(file, transformer)


def test_a_lightning_file(tmp_path: Path, transformer: Checkpoint) -> None:
    """Its name says for how many steps it was distilled."""
    name = "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors"
    found = lora.read(files.write(tmp_path / name, DIALECTS["comfy"]), transformer)
    assert (found.steps, found.nbytes) == (8, 2 * RANK * (32 + 80 + 80))


Change = Callable[[dict[str, Entry]], object]
KEY = "diffusion_model.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.clear(), "is no LoRA"),
        (lambda t: t.update({"x.weight": ("BF16", (1,))}), "holds what is no LoRA (x.weight)"),
        (lambda t: t.pop(f"{KEY}.lora_up.weight"), "lacks half"),
        (lambda t: t.update({f"{KEY}.lora_up.weight": ("BF16", (99, RANK))}), "for another model"),
        (lambda t: t.update({f"{KEY}.lora_up.weight": ("BF16", (16, 9))}), "for another model"),
        (lambda t: t.update({f"{KEY}.lora_up.weight": ("BF16", (16, RANK, 1))}), "another model"),
        (lambda t: t.update({f"{KEY}.lora_up.weight": ("I8", (16, RANK))}), "values of type I8"),
        (lambda t: t.update({f"{KEY}.alpha": ("F32", (2,))}), "alpha of several values"),
        (lambda t: t.update({f"{KEY[:-1]}k.alpha": ("F32", ())}), "an alpha alone"),
        (lambda t: t.update({f"{KEY}.lora_A.weight": ("BF16", (RANK, 16))}), "twice"),
        (lambda t: t.update({f"{KEY}.dora_scale": ("BF16", (16,))}), "not supported"),
        (lambda t: t.update({f"{KEY}.lokr_w1": ("BF16", (4, 4))}), "not supported"),
        (lambda t: t.update({f"{KEY}.hada_w1_a": ("BF16", (4, 4))}), "not supported"),
        (lambda t: t.update({f"{KEY}.diff": ("BF16", (16, 16))}), "not supported"),
        (lambda t: t.update({"lora_te1_x.lora_up.weight": ("BF16", (1, 1))}), "a text encoder"),
        (lambda t: t.update({"lora_unet_down_blocks_0_x.lora_up.weight": ("BF16", (1, 1))}),
         "this one has no lora_unet_down_blocks_0_x"),
        (lambda t: t.update({"transformer.single_transformer_blocks.0.x.lora_A.weight":
                             ("BF16", (1, 1))}), "this one has no transformer.single"),
        (lambda t: t.update({"transformer_blocks.2.attn.to_q.lora_A.weight": ("BF16", (4, 16))}),
         "this one has no transformer_blocks.2"),
        (lambda t: t.update({f"{KEY}.lora_up.weight": ("BF16", (16, 0)),
                             f"{KEY}.lora_down.weight": ("BF16", (0, 16))}), "a rank of 0"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, transformer: Checkpoint, change: Change, said: str
) -> None:
    """Each mistake has its sentence, from the header alone."""
    tensors = dict(DIALECTS["comfy"])
    change(tensors)
    file = files.write(tmp_path / "style.safetensors", tensors)
    began = time.thread_time()
    with pytest.raises(errors.ModelInvalid) as caught:
        lora.read(file, transformer)
    assert said in caught.value.message and "style" in caught.value.message
    assert time.thread_time() - began < 1


def test_a_pickle_and_a_checkpoint(tmp_path: Path, transformer: Checkpoint) -> None:
    """A pickle is not opened, and a whole model is no LoRA."""
    (tmp_path / "style.safetensors").write_bytes(b"\x80\x04" + bytes(32))
    with pytest.raises(errors.ModelInvalid, match="is a pickle"):
        lora.read(tmp_path / "style.safetensors", transformer)
    with pytest.raises(errors.ModelInvalid, match="holds what is no LoRA"):
        lora.read(tmp_path / "t.safetensors", transformer)
