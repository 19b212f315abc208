"""The demo's weights as other tools would have written them, one function a layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vellumd.model_card import DEMO_FOLDER
from vellumd.weights.checkpoint import SENTINEL

Tensors = dict[str, Tensor]

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
PREFIX = "model.diffusion_model."
KEPT = re.compile(r".*(img_mod|txt_mod)\.1\.weight")
"""What fp8mixed files keep in bfloat16."""


@dataclass(frozen=True)
class Made:
    """A model that was written: what `[engine]` would say of it."""

    model: Path
    base: Path | None = None


def tensors(part: str) -> Tensors:
    """The demo's weights of a part."""
    (file,) = (DEMO_FOLDER / part).glob("*.safetensors")
    return load_file(file)


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether quantising tools take this tensor of a transformer."""
    return tensor.dim() == 2 and name.startswith("transformer_blocks.")


def by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with one scale."""
    scale = weight.float().abs().max() / FP8_MAX
    return (weight.float() / scale).to(FP8), scale


def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with a scale for each row [out, 1]."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (weight.float() / scale).to(FP8), scale


def by_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with a scale for each 128x128, the last ones smaller."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % 128, 0, -rows % 128))
    blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    scale = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-12) / FP8_MAX
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    return (weight.float() / wide).to(FP8), scale


def base(home: Path) -> Path:
    """The demo's folder without its weights."""
    without = shutil.ignore_patterns("*.safetensors", "samples")
    return Path(shutil.copytree(DEMO_FOLDER, home / "base", ignore=without))


def folder(home: Path) -> Made:
    """The demo as it ships: a diffusers folder."""
    return Made(Path(shutil.copytree(DEMO_FOLDER, home / "model")))


def predecessor(home: Path) -> Made:
    """A diffusers folder of which transformer and text encoder were cast to FP8 altogether."""
    made = folder(home)
    for part in ("transformer", "text_encoder"):
        (file,) = (made.model / part).glob("*.safetensors")
        save_file({name: tensor.to(FP8) for name, tensor in load_file(file).items()}, file)
    return made


def comfy(home: Path, transformer: Tensors, encoder: Tensors | None = None, **header: str) -> Made:
    """ComfyUI's folders, each part a file under its names."""
    models = home / "ComfyUI" / "models"
    files = {
        "diffusion_models/qwen_image_edit_2511.safetensors": transformer,
        "text_encoders/qwen_2.5_vl_7b.safetensors": encoder or old_names(tensors("text_encoder")),
        "vae/qwen_image_vae.safetensors": wan_names(tensors("vae")),
        "vae/other.safetensors": {"first_stage_model.x": torch.zeros(1)},
    }
    for name, content in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(content, models / name, metadata=header if transformer is content else None)
    return Made(models / "diffusion_models/qwen_image_edit_2511.safetensors", base(home))


def prefixed(found: Tensors) -> Tensors:
    """A transformer under ComfyUI's names, with its mark of zero_cond_t."""
    return {SENTINEL: torch.empty(0)} | {PREFIX + name: tensor for name, tensor in found.items()}


def comfy_bf16(home: Path) -> Made:
    """ComfyUI's own conversion, as it is."""
    return comfy(home, prefixed(tensors("transformer")))


def comfy_fp8(home: Path) -> Made:
    """A file whose linears were cast to FP8 without scales."""
    cast = {n: t.to(FP8) if is_linear(n, t) else t for n, t in tensors("transformer").items()}
    return comfy(home, cast | {SENTINEL: torch.zeros(())})


def comfy_scaled(home: Path) -> Made:
    """The former way of scales, in transformer and text encoder."""
    made: Tensors = {"scaled_fp8": torch.empty(2, dtype=FP8)}
    for name, tensor in tensors("transformer").items():
        made |= old_scale(name, tensor) if is_linear(name, tensor) else {name: tensor}
    encoder: Tensors = {"scaled_fp8": torch.empty(0, dtype=FP8)}
    for name, tensor in old_names(tensors("text_encoder")).items():
        linear = tensor.dim() == 2 and "_proj." in name
        encoder |= old_scale(name, tensor) if linear else {name: tensor}
    return comfy(home, prefixed(made), encoder)


def old_scale(name: str, weight: Tensor) -> Tensors:
    """A weight with ComfyUI's former companions."""
    stored, scale = by_tensor(weight)
    layer = name.removesuffix(".weight")
    return {
        name: stored,
        f"{layer}.scale_weight": scale,
        f"{layer}.scale_input": torch.ones(()),
    }


def mixed(
    home: Path,
    quantise: Callable[[Tensor], tuple[Tensor, Tensor]] = by_tensor,
    *,
    marks: bool = True,
) -> Made:
    """fp8mixed: some linears stay, others have a scale and a marker, or a line in a table."""
    made: Tensors = {}
    layers = {}
    for name, tensor in tensors("transformer").items():
        made[name] = tensor
        if is_linear(name, tensor) and not KEPT.fullmatch(name):
            layer = name.removesuffix(".weight")
            made[name], made[f"{layer}.weight_scale"] = quantise(tensor)
            settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": "mlp" in name}
            if marks:
                text = json.dumps(settings).encode()
                made[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            layers[PREFIX + layer] = settings
    table = {} if marks else {"_quantization_metadata": json.dumps({"layers": layers})}
    return comfy(home, prefixed(made), **table)


def lightx2v(home: Path, strength: float = 1) -> Made:
    """LightX2V's file: the LoRA added in float32, then a scale for each row."""
    fused = with_lora(tensors("transformer"), strength)
    made: Tensors = {}
    for name, tensor in fused.items():
        made[name] = tensor
        if is_linear(name, tensor):
            made[name], made[f"{name.removesuffix('.weight')}.weight_scale"] = by_row(tensor)
    home.mkdir(exist_ok=True)
    file = home / "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_8steps_v1.0.safetensors"
    save_file(made | {SENTINEL: torch.empty(0)}, file)
    return Made(file, DEMO_FOLDER)


def with_lora(weights: Tensors, strength: float) -> Tensors:
    """`weights` with the demo's LoRA added."""
    (file,) = (DEMO_FOLDER / "loras").glob("*.safetensors")
    lora = {name: tensor.float() for name, tensor in load_file(file).items()}
    fused = dict(weights)
    for name in weights:
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_up.weight" in lora:
            up, down = lora[f"{layer}.lora_up.weight"], lora[f"{layer}.lora_down.weight"]
            scale = strength * lora[f"{layer}.alpha"] / len(down)
            fused[name] = weights[name].float() + scale * up @ down
    return fused


def old_names(encoder: Tensors) -> Tensors:
    """Qwen2.5-VL under the names it was published with, and with its head."""
    made = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in encoder.items()
    }
    return made | {"lm_head.weight": encoder["model.language_model.embed_tokens.weight"].clone()}


def wan_names(vae: Tensors) -> Tensors:
    """The VAE under Wan's names, as ComfyUI has it."""
    return {wan_name(name): tensor for name, tensor in vae.items()}


def wan_name(name: str) -> str:
    """Wan's name of a tensor of diffusers' VAE; of the encoder's blocks the numbers agree."""
    up = re.compile(r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d)|upsamplers\.0)\.")
    name = up.sub(lambda m: f"decoder.upsamples.{4 * int(m[1]) + int(m[2] or 3)}.", name)
    for ours, wan in (
        ("encoder.down_blocks.", "encoder.downsamples."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.resnets.1.", "middle.2."),
        ("mid_block.attentions.0.", "middle.1."),
        (".conv_in.", ".conv1."),
        (".norm_out.", ".head.0."),
        (".conv_out.", ".head.2."),
        (".conv_shortcut.", ".shortcut."),
    ):
        name = name.replace(ours, wan)
    if "samples." in name or ".middle.0." in name or ".middle.2." in name:
        for ours, number in (("norm1", 0), ("conv1", 2), ("norm2", 3), ("conv2", 6)):
            name = name.replace(f".{ours}.", f".residual.{number}.")
    if name.startswith("quant_conv."):
        return name.replace("quant_conv.", "conv1.")
    return name.replace("post_quant_conv.", "conv2.")
