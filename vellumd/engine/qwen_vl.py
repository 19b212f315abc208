"""What Qwen2.5-VL's language model and vision tower have in common, in few launches.

Both are bound by the host: a card computes their layers in less time than transformers takes to
launch them. Everything here has transformers' bits on a CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import rms_norm
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

ALIGNED = 16
"""Numbers. Where rows of a mask do not begin at multiples of it, attention copies the mask."""

PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention that take any number of tokens as it comes.

On Hopper and Blackwell torch takes cuDNN's by itself, which plans for each number that is new to
it: 0.4 s on a B200 (modelscope/FunASR#3704). A prompt's is new with nearly each edit.
"""

planless = sdpa_kernel(PLANLESS)
"""Decorates what attends by one of these alone."""


class Norm(torch.nn.Module):
    """Stands for transformers' `Qwen2_5_VLRMSNorm`, with its weight: two launches for eight.

    That one rounds before it multiplies, so torch's is not given the weight.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self._eps = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` [..., channels], its mean square brought to 1, times the weight."""
        normed: Tensor = rms_norm(hidden, hidden.shape[-1:], eps=self._eps) * self.weight
        return normed


def fuse_norms(model: torch.nn.Module) -> None:
    """Have a `Norm` stand for each RMSNorm of `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, stock.Qwen2_5_VLRMSNorm):
                setattr(parent, name, Norm(child))


class Rotation(NamedTuple):
    """Cosines and sines of positions, [..., 1, width of a head].

    The halves of a head turn into each other: the sines for the first one are negative.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> Rotation:
        """Of those that transformers makes, [tokens, width]."""
        first, second = sin.chunk(2, dim=-1)
        return cls(cos[:, None], torch.cat([-first, second], dim=-1)[:, None])

    def turn(self, heads: Tensor) -> Tensor:
        """`heads` [..., heads, width], rotated in the cosines' type if that is wider."""
        other = heads.roll(heads.shape[-1] // 2, -1) * self.sin
        made = torch.empty_like(heads)  # the sum is rounded as it is written, not by a launch more
        return torch.add(heads * self.cos, other, out=made)


def mask_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention so that only what is `seen` [..., all] counts.

    As numbers, or torch makes them of yes and no in each layer. They are finite, since not
    every kernel bears infinite ones.
    """
    width = seen.shape[-1]
    wide = seen.new_zeros(*seen.shape[:-1], -(-width // ALIGNED) * ALIGNED, dtype=dtype)
    return wide[..., :width].masked_fill_(~seen, torch.finfo(dtype).min / 2)
