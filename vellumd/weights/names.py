"""The names that tools give to the same tensors, turned into those of diffusers.

ComfyUI puts a prefix before a transformer's names, Qwen2.5-VL was saved under two
namings, and ComfyUI keeps the VAE under those of Wan, from whose code it comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What ComfyUI writes before the names of a transformer."""

TRANSFORMER, TEXT_ENCODER, VAE = "transformer", "text_encoder", "vae"
PARTS = (TRANSFORMER, TEXT_ENCODER, VAE)
"""The parts with weights, as their folders are called."""

_MARKS = {
    TRANSFORMER: re.compile(r"transformer_blocks\.0\.attn\.add_q_proj\.weight"),
    TEXT_ENCODER: re.compile(r"(model\.)?visual\.patch_embed\.proj\.weight"),
    VAE: re.compile(r"decoder\.conv(1|_in)\.weight"),
}
_ALL_IN_ONE = ("text_encoders.", "conditioner.", "first_stage_model.", "vae.")


def part_of(names: Iterable[str]) -> str | None:
    """The part that tensors of these names belong to; None for those of another model."""
    for name in names:
        for part, mark in _MARKS.items():
            if mark.fullmatch(unprefixed(name)):
                return part
    return None


def is_all_in_one(names: Iterable[str]) -> bool:
    """Whether a file holds other parts beside a transformer, as some of ComfyUI's do."""
    return any(name.startswith(_ALL_IN_ONE) for name in names)


def unprefixed(name: str) -> str:
    """`name` without ComfyUI's prefix."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def canonical(part: str) -> Callable[[str], str | None]:
    """What turns a file's name for a tensor of `part` into ours; None for one of no use."""
    return {TRANSFORMER: unprefixed, TEXT_ENCODER: _encoder, VAE: _vae}[part]


def _encoder(name: str) -> str | None:
    """Qwen2.5-VL as transformers 5 names it: `model.language_model` and `model.visual`.

    The head that would predict words, and tables that are computed, are of no use.
    """
    if name.startswith("lm_head.") or name.endswith("rotary_emb.inv_freq"):
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(
        ("model.language_model.", "model.visual.")
    ):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


_WAN = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"^encoder\.downsamples\.", "encoder.down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
"""Wan's names of a VAE's layers as diffusers' (diffusers: convert_wan_vae_to_diffusers)."""
_UPSAMPLES = re.compile(r"^decoder\.upsamples\.(\d+)\.")
_UP_BLOCK = 4
"""Layers of Wan's decoder that make one block of diffusers': three residual, one upsampler."""


def _vae(name: str) -> str:
    """The VAE as diffusers names it; its own names stay."""
    for wan, ours in _WAN:
        name = re.sub(wan, ours, name)
    return _UPSAMPLES.sub(_up_block, name)


def _up_block(found: re.Match[str]) -> str:
    block, layer = divmod(int(found[1]), _UP_BLOCK)
    inside = "upsamplers.0" if layer == _UP_BLOCK - 1 else f"resnets.{layer}"
    return f"decoder.up_blocks.{block}.{inside}."
