"""The demo's forwards for training: whole batches through the stock modules' weights.

The stock classes run one edit at a time: they loop over pictures, build lists a token
long in Python and rotate by complex numbers. These functions compute the same values (a
test compares them) for batches of edits with equally many pictures of the demo's one size.
"""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from vellumd.demo.scenes import SIDE
from vellumd.demo.train.model import PATCH, VIEW
from vellumd.engine.encode import PICTURE, PREFIX_TOKENS, TEMPLATE
from vellumd.engine.latents import PATCH as TOKEN

ROWS = SIDE // TOKEN
"""Rows, and columns, of a picture's tokens for the transformer."""
TOKENS = ROWS**2
PATCHES = VIEW // PATCH
MERGE = 2
VIEW_TOKENS = (PATCHES // MERGE) ** 2
"""Tokens of a picture for the language model."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of a rotary embedding."""


class Prompts:
    """Token rows of many prompts for edits with `pictures` pictures, padded to one length."""

    def __init__(self, words: Any, prompts: list[str], pictures: int) -> None:
        text = "".join(PICTURE.format(number) for number in range(1, pictures + 1))
        head, tail = TEMPLATE.format(text + "\0").split("\0")
        head = head.replace("<|image_pad|>", "<|image_pad|>" * VIEW_TOKENS)
        first, last = words(head)["input_ids"], words(tail)["input_ids"]
        rows = [[*first, *words(prompt)["input_ids"], *last] for prompt in prompts]
        self.pictures = pictures
        # The joint attention's mask wants whole eights.
        length = max(map(len, rows))
        length += -(length - PREFIX_TOKENS) % 8
        padding = words.convert_tokens_to_ids("<|endoftext|>")
        self.ids = torch.tensor([row + [padding] * (length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        self.mask = (torch.arange(length) < lengths[:, None])[:, PREFIX_TOKENS:]
        pad = words.convert_tokens_to_ids("<|image_pad|>")
        self.image_at = torch.tensor([at for at, token in enumerate(first) if token == pad])
        self.positions = _positions(first, pad, length)


def _positions(first: list[int], pad: int, length: int) -> Tensor:
    """Frame, row and column [3, length] of each token: a picture's tokens lie on a grid."""
    side = PATCHES // MERGE
    found: list[tuple[int, int, int]] = []
    at = 0
    while len(found) < length:
        if len(found) < len(first) and first[len(found)] == pad:
            found += [(at, at + row, at + column) for row in range(side) for column in range(side)]
            at += side
        else:
            found.append((at, at, at))
            at += 1
    return torch.tensor(found).T


@dataclass(frozen=True)
class Rotations:
    """All rotary embeddings of edits with one number of pictures and one prompt length."""

    vision: Rotation
    language: Rotation
    image: Rotation
    text: Rotation


def rotations(encoder: Any, transformer: Any, prompts: Prompts, device: torch.device) -> Rotations:
    """The tables for batches of `prompts`."""
    vision = encoder.config.vision_config
    text = encoder.config.text_config
    shapes = [[(1, ROWS, ROWS)] * (1 + prompts.pictures)]
    freqs = transformer.pos_embed(
        shapes, max_txt_seq_len=prompts.mask.shape[1], device=torch.device("cpu")
    )
    image, words = ((freq.real.to(device), freq.imag.to(device)) for freq in freqs)
    return Rotations(
        _vision_rotation(vision.hidden_size // vision.num_heads, device),
        _language_rotation(text, prompts.positions, device),
        image,
        words,
    )


def _vision_rotation(channels: int, device: torch.device) -> Rotation:
    """By patch, as merged tokens order them: half the channels turn by row, half by column."""
    grid = torch.arange(PATCHES)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    places = [
        place.reshape(PATCHES // MERGE, MERGE, PATCHES // MERGE, MERGE).swapaxes(1, 2).flatten()
        for place in (rows, columns)
    ]
    speeds = 10_000.0 ** -(torch.arange(0, channels // 2, 2) / (channels // 2))
    angles = torch.cat([place[:, None] * speeds for place in places], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(device), angles.sin().to(device)


def _language_rotation(config: Any, positions: Tensor, device: torch.device) -> Rotation:
    """Sections of the channels turn by frame, row and column (Qwen2-VL, arXiv 2409.12191)."""
    channels = config.hidden_size // config.num_attention_heads
    speeds = config.rope_parameters["rope_theta"] ** -(torch.arange(0, channels, 2) / channels)
    angles = positions[..., None] * speeds
    sections = angles.split(config.rope_parameters["mrope_section"], dim=-1)
    chosen = torch.cat([part[axis] for axis, part in enumerate(sections)], dim=-1)
    chosen = torch.cat([chosen, chosen], dim=-1)[:, None]
    return chosen.cos().to(device), chosen.sin().to(device)


def see(encoder: Any, patches: Tensor, rotation: Rotation) -> Tensor:
    """The vision tower: patches [N, PATCHES², 3·2·PATCH²] to [N, VIEW_TOKENS, channels].

    The one window holds the whole picture, so that all of its layers attend to all of it.
    """
    tower = encoder.model.visual
    kernel = tower.patch_embed.proj.weight
    hidden = F.linear(patches, kernel.flatten(1))
    for block in tower.blocks:
        attention = block.attn
        heads = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = heads.unbind(2)
        query, key = (_turn_halves(part, rotation) for part in (query, key))
        hidden = hidden + attention.proj(_attend(query, key, value))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged = tower.merger.ln_q(hidden).reshape(len(patches), VIEW_TOKENS, -1)
    seen: Tensor = tower.merger.mlp(merged)
    return seen


def read(encoder: Any, ids: Tensor, seen: Tensor, image_at: Tensor, rotation: Rotation) -> Tensor:
    """The language model: tokens [B, L] and pictures' tokens [B, P, channels] to embeddings.

    What follows the template's prefix is returned: [B, L − PREFIX_TOKENS, channels].
    Padding at the end changes nothing before it.
    """
    model = encoder.model.language_model
    hidden = model.embed_tokens(ids).index_copy(1, image_at, seen.float())
    for layer in model.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query, key, value = (
            project(normed).unflatten(-1, (-1, attention.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (_turn_halves(part, rotation) for part in (query, key))
        groups = query.shape[2] // key.shape[2]
        key, value = (part.repeat_interleave(groups, dim=2) for part in (key, value))
        hidden = hidden + attention.o_proj(_attend(query, key, value, causal=True))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    hidden = model.norm(hidden)
    embeddings: Tensor = hidden[:, PREFIX_TOKENS:]
    return embeddings


def transform(
    transformer: Any,
    noisy: Tensor,
    references: Tensor,
    text: Tensor,
    mask: Tensor,
    sigma: Tensor,
    turns: Rotations,
    block: Any,
) -> Tensor:
    """The transformer: the velocity [B, TOKENS, 64] of `noisy` target tokens.

    `references` [B, P·TOKENS, 64] are clean, `text` [B, L, channels] with `mask` [B, L]
    true for words, `sigma` [B] the share of noise. `block` is `transform_block` or a
    compiled one.
    """
    image = transformer.img_in(torch.cat([noisy, references], dim=1))
    words = transformer.txt_in(_rms(text, transformer.txt_norm))
    times = torch.cat([sigma, sigma.new_zeros(1)])
    embed = transformer.time_text_embed
    embedded = embed.timestep_embedder(embed.time_proj(times))
    joint = torch.cat([mask, mask.new_ones(len(mask), image.shape[1])], dim=1)[:, None, None]
    joint = joint.expand(-1, -1, joint.shape[-1], -1)
    for one in transformer.transformer_blocks:
        words, image = block(one, words, image, embedded, joint, turns.text, turns.image)
    scale, shift = transformer.norm_out.linear(F.silu(embedded[:-1])).chunk(2, dim=-1)
    clean = _normal(image[:, :TOKENS]) * (1 + scale[:, None]) + shift[:, None]
    velocity: Tensor = transformer.proj_out(clean)
    return velocity


def transform_block(
    block: Any,
    words: Tensor,
    image: Tensor,
    embedded: Tensor,
    mask: Tensor,
    words_turn: Rotation,
    image_turn: Rotation,
) -> tuple[Tensor, Tensor]:
    """One double-stream block. `embedded` [B + 1, D]: times, the last one of the references."""
    references = image.shape[1] - TOKENS
    active = F.silu(embedded)
    of_image = block.img_mod[1](active)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        _spread(part, references) for part in of_image.chunk(6, dim=-1)
    )
    of_words = block.txt_mod[1](active[:-1])[:, None].chunk(6, dim=-1)
    attention = block.attn
    normed = _normal(image) * (1 + scale1) + shift1
    spoken = _normal(words) * (1 + of_words[1]) + of_words[0]
    channels = attention.inner_dim // attention.heads

    def heads(project: Any, hidden: Tensor) -> Tensor:
        found: Tensor = project(hidden).unflatten(-1, (-1, channels))
        return found

    query = _turn_pairs(_rms(heads(attention.to_q, normed), attention.norm_q), image_turn)
    key = _turn_pairs(_rms(heads(attention.to_k, normed), attention.norm_k), image_turn)
    value = heads(attention.to_v, normed)
    asked = _rms(heads(attention.add_q_proj, spoken), attention.norm_added_q)
    keyed = _rms(heads(attention.add_k_proj, spoken), attention.norm_added_k)
    valued = heads(attention.add_v_proj, spoken)
    attended = _attend(
        torch.cat([_turn_pairs(asked, words_turn), query], dim=1),
        torch.cat([_turn_pairs(keyed, words_turn), key], dim=1),
        torch.cat([valued, value], dim=1),
        mask=mask,
    )
    length = words.shape[1]
    image = image + gate1 * attention.to_out[0](attended[:, length:])
    words = words + of_words[2] * attention.to_add_out(attended[:, :length])
    image = image + gate2 * block.img_mlp(_normal(image) * (1 + scale2) + shift2)
    words = words + of_words[5] * block.txt_mlp(_normal(words) * (1 + of_words[4]) + of_words[3])
    return words, image


def _spread(part: Tensor, references: int) -> Tensor:
    """Modulation [B + 1, D] by token [B, TOKENS + references, D]: the last row's for references."""
    batch = len(part) - 1
    targets = part[:-1, None].expand(-1, TOKENS, -1)
    return torch.cat([targets, part[-1:, None].expand(batch, references, -1)], dim=1)


def _normal(hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)


def _rms(hidden: Tensor, norm: Any) -> Tensor:
    variance = hidden.float().pow(2).mean(-1, keepdim=True)
    normed: Tensor = hidden * torch.rsqrt(variance + norm.eps) * norm.weight
    return normed.to(hidden.dtype)


def _turn_halves(hidden: Tensor, rotation: Rotation) -> Tensor:
    """Rotate [B, S, heads, channels], a channel with the one half the channels on."""
    cos, sin = rotation
    one, two = hidden.chunk(2, dim=-1)
    return (hidden * cos + torch.cat([-two, one], dim=-1) * sin).to(hidden.dtype)


def _turn_pairs(hidden: Tensor, rotation: Rotation) -> Tensor:
    """Rotate [B, S, heads, channels], a channel with its neighbour."""
    cos, sin = (part[:, None] for part in rotation)
    one, two = hidden.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([one * cos - two * sin, one * sin + two * cos], dim=-1)
    return turned.flatten(-2).to(hidden.dtype)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention over [B, S, heads, channels], heads joined again."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return found.transpose(1, 2).flatten(2)


def to_patches(views: Tensor) -> Tensor:
    """Pictures [N, VIEW, VIEW, 3] from 0 to 255 as the vision tower's patches.

    Normalised by CLIP's means and deviations; each picture twice, as a film of two frames.
    """
    mean, std = _clip(views.device)
    pixels = ((views.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    side = PATCHES // MERGE
    split = pixels.reshape(-1, 3, side, MERGE, PATCH, side, MERGE, PATCH)
    patches = (
        split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    )
    return patches.reshape(len(views), PATCHES**2, -1)


@cache
def _clip(device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's means and deviations of red, green and blue."""
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073), device=device)
    return mean, torch.tensor((0.26862954, 0.26130258, 0.27577711), device=device)
