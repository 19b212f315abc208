"""A small `QwenImageTransformer2DModel` with random weights, and something to run it on."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from vellumd.engine.transformer import Conditioning

SHAPES = [(1, 8, 6), (1, 6, 8), (1, 4, 10), (1, 8, 8)]
"""Rows and columns of the target and of up to three references."""
TARGET = 48
TIMES = torch.tensor([1000.0, 750.0, 333.0])


def transformer(dtype: torch.dtype, *, zero_cond_t: bool = True, layers: int = 3) -> Any:
    """Weights, norms' among them, so that every part of the forward shows."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model: Any = QwenImageTransformer2DModel(
            num_layers=layers, attention_head_dim=32, num_attention_heads=4,
            joint_attention_dim=64, axes_dims_rope=(8, 12, 12), zero_cond_t=zero_cond_t,
        )  # fmt: skip
        for name, parameter in model.named_parameters():
            norm = "norm" in name and parameter.dim() == 1
            parameter.copy_(torch.randn_like(parameter) * 0.08 + norm)
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def conditioning(dtype: torch.dtype, references: int, *, guided: bool = True) -> Conditioning:
    """Random embeddings of prompts of different length, and random references."""
    numbers = torch.Generator().manual_seed(4)

    def random(rows: int, channels: int) -> Tensor:
        return torch.randn((1, rows, channels), generator=numbers).to(dtype)

    shapes = SHAPES[: 1 + references]
    rows = sum(height * width for _, height, width in shapes[1:])
    negative = random(13, 64) if guided else None
    return Conditioning(random(21, 64), negative, random(rows, 64), shapes)


def noise(dtype: torch.dtype, seed: int = 5) -> Tensor:
    """A target [1, TARGET, 64]."""
    return torch.randn((1, TARGET, 64), generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(result: Tensor, exact: Tensor) -> float:
    """The relative error of `result`."""
    return float((result.double() - exact.double()).norm() / exact.double().norm())
