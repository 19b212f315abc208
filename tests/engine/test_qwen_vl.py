"""Norm, rotation and masks of Qwen2.5-VL: transformers' and torch's bits, in fewer launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

from vellumd.engine.model import Model
from vellumd.engine.qwen_vl import Norm, Rotation, fuse_norms, mask_of

TYPES = [torch.float32, torch.bfloat16]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 30, 64), (7, 1280), (1, 2, 52)], ids=str)
@torch.inference_mode()
def test_the_norm_of_transformers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """To the bit, with its rounding before the weight."""
    norm = stock.Qwen2_5_VLRMSNorm(shape[-1], eps=1e-5)
    norm.weight.data = numbers(shape[-1], dtype=dtype)
    hidden = 5 * numbers(*shape, dtype=dtype, seed=2)
    assert torch.equal(Norm(norm)(hidden), norm(hidden))


@torch.inference_mode()
def test_every_norm_is_fused() -> None:
    """Also one that is an attribute of what is fused; other modules stay, and all names."""
    parent: Any = torch.nn.Module()
    parent.norm = stock.Qwen2_5_VLRMSNorm(4)
    parent.layers = torch.nn.ModuleList([torch.nn.Sequential(stock.Qwen2_5_VLRMSNorm(4))])
    parent.other = torch.nn.RMSNorm(4)
    before = dict(parent.named_parameters())
    fuse_norms(parent)
    assert isinstance(parent.norm, Norm) and isinstance(parent.layers[0][0], Norm)
    assert isinstance(parent.other, torch.nn.RMSNorm)
    after = dict(parent.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in after)


def test_the_encoder_is_loaded_so(model: Model) -> None:
    """No norm of transformers' is left in it."""
    kinds = {type(module) for module in model.parts.text_encoder.modules()}
    assert Norm in kinds and stock.Qwen2_5_VLRMSNorm not in kinds


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_rotation_of_transformers(dtype: torch.dtype) -> None:
    """To the bit, as the language model rotates, and as the tower does: in float32."""
    angles = numbers(5, 8).repeat(1, 2)
    heads = numbers(5, 3, 16, dtype=dtype, seed=2)
    cos, sin = angles.cos(), angles.sin()
    seen = Rotation.of(cos, sin).turn(heads)
    assert torch.equal(seen.to(dtype), stock.apply_rotary_pos_emb_vision(heads, heads, cos, sin)[0])
    cos, sin = cos.to(dtype), sin.to(dtype)
    expected = stock.apply_rotary_pos_emb(heads, heads, cos, sin)[0]
    assert torch.equal(Rotation.of(cos, sin).turn(heads), expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("tokens", [13, 16])
def test_a_mask_of_numbers(tokens: int, dtype: torch.dtype) -> None:
    """Attention's bits are those of a mask of yes and no; rows begin at multiples of 16."""
    query, key, value = (numbers(2, 4, tokens, 8, dtype=dtype, seed=seed) for seed in range(3))
    seen = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    mask = mask_of(seen, dtype)
    assert mask.dtype is dtype and all(stride % 16 == 0 for stride in mask.stride()[:-1])
    assert torch.equal(
        scaled_dot_product_attention(query, key, value, attn_mask=mask),
        scaled_dot_product_attention(query, key, value, attn_mask=seen),
    )
