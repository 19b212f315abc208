"""The tensors that a part's `config.json` promises, by name, with their shapes.

So a file of another model, or one with something missing, is refused from its header
before torch is imported. The VAE's are not derived here: it is small, and is compared with
diffusers' own model before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Named = Iterator[tuple[str, tuple[int, ...]]]

ATTENTION = (
    "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out",
)  # fmt: skip


TRANSFORMER = {
    "num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128,
    "joint_attention_dim": 3584, "patch_size": 2, "in_channels": 64, "out_channels": 16,
}  # fmt: skip
"""What a transformer's configuration leaves out is as in 2511."""
LARGEST, BLOCKS_MAX = 10**6, 1000
"""Numbers that a configuration may claim of sides and of blocks; beyond, it is garbled."""


def _number(config: dict[str, Any], key: str, usual: int, largest: int = LARGEST) -> int:
    """What a configuration says, or what is usual; `ValueError` for what cannot be."""
    found = config.get(key, usual)
    if type(found) is not int or not 0 < found <= largest:
        raise ValueError(key)
    return found


def _blocks(config: dict[str, Any], key: str, usual: int) -> range:
    """The numbers of a model's blocks."""
    return range(_number(config, key, usual, BLOCKS_MAX))


def transformer(config: dict[str, Any]) -> Shapes:
    """Those of diffusers' QwenImageTransformer2DModel; `ValueError` for what cannot be."""
    said = {key: _number(config, key, usual) for key, usual in TRANSFORMER.items()}
    head, joint = said["attention_head_dim"], said["joint_attention_dim"]
    inner = head * said["num_attention_heads"]
    out = said["patch_size"] ** 2 * said["out_channels"]
    found: Shapes = {"txt_norm.weight": (joint,)}
    for name, rows, columns in (
        ("img_in", inner, said["in_channels"]),
        ("txt_in", inner, joint),
        ("time_text_embed.timestep_embedder.linear_1", inner, 256),
        ("time_text_embed.timestep_embedder.linear_2", inner, inner),
        ("norm_out.linear", 2 * inner, inner),
        ("proj_out", out, inner),
    ):
        found.update(_linear(name, rows, columns))
    for number in _blocks(config, "num_layers", TRANSFORMER["num_layers"]):
        found.update(_block(f"transformer_blocks.{number}", inner, head))
    return found


def _block(block: str, inner: int, head: int) -> Named:
    for side in ("img", "txt"):
        yield from _linear(f"{block}.{side}_mod.1", 6 * inner, inner)
        yield from _linear(f"{block}.{side}_mlp.net.0.proj", 4 * inner, inner)
        yield from _linear(f"{block}.{side}_mlp.net.2", inner, 4 * inner)
    for name in ATTENTION:
        yield from _linear(f"{block}.attn.{name}", inner, inner)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield f"{block}.attn.{name}.weight", (head,)


def _linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Named:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def text_encoder(config: dict[str, Any]) -> Shapes:
    """Those of transformers' Qwen2.5-VL, without its head; defaults are those of the 7B.

    Older configurations have the language model's keys beside `vision_config`, newer ones
    in `text_config`.
    """
    return dict(
        [
            *_language({**config, **(config.get("text_config") or {})}),
            *_vision(config.get("vision_config") or {}),
        ]
    )


def _language(config: dict[str, Any]) -> Named:
    home = "model.language_model"
    width, wide = _number(config, "hidden_size", 3584), _number(config, "intermediate_size", 18_944)
    heads = _number(config, "num_attention_heads", 28)
    keys = _number(config, "num_key_value_heads", 4) * (width // heads)
    yield f"{home}.embed_tokens.weight", (_number(config, "vocab_size", 152_064), width)
    yield f"{home}.norm.weight", (width,)
    for number in _blocks(config, "num_hidden_layers", 28):
        layer = f"{home}.layers.{number}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (width,)
        for name, rows in (("q", width), ("k", keys), ("v", keys)):
            yield from _linear(f"{layer}.self_attn.{name}_proj", rows, width)
        yield from _linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"{layer}.mlp.{name}", wide, width, bias=False)
        yield from _linear(f"{layer}.mlp.down_proj", width, wide, bias=False)


def _vision(config: dict[str, Any]) -> Named:
    home = "model.visual"
    width, wide = _number(config, "hidden_size", 1280), _number(config, "intermediate_size", 3420)
    patch, frames = _number(config, "patch_size", 14), _number(config, "temporal_patch_size", 2)
    channels = _number(config, "in_channels", _number(config, "in_chans", 3))
    yield f"{home}.patch_embed.proj.weight", (width, channels, frames, patch, patch)
    for number in _blocks(config, "depth", 32):
        block = f"{home}.blocks.{number}"
        for name in ("norm1", "norm2"):
            yield f"{block}.{name}.weight", (width,)
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"{block}.mlp.{name}", wide, width)
        yield from _linear(f"{block}.mlp.down_proj", width, wide)
    merged = width * _number(config, "spatial_merge_size", 2) ** 2
    yield f"{home}.merger.ln_q.weight", (width,)
    yield from _linear(f"{home}.merger.mlp.0", merged, merged)
    yield from _linear(f"{home}.merger.mlp.2", _number(config, "out_hidden_size", 3584), merged)
