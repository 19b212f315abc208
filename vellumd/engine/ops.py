"""What a block does between its matrix products, in plain PyTorch.

Each function rounds where diffusers' block rounds, so the results are the same to the bit.
A picture stream [1, rows, channels] has up to two segments with a modulation each: the
target's first `split` rows, and the references after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

EPSILON = 1e-6
"""Of all norms of Qwen-Image."""


def segments(x: Tensor, split: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the segments of `x`, each with its row of `rows` [1 or 2, channels].

    Where `x` ends with `split`, or `rows` is one row, all of `x` is one segment.
    """
    if len(rows) == 1 or split >= x.shape[1]:
        yield x, rows[0]
    else:
        yield x[:, :split], rows[0]
        yield x[:, split:], rows[1]


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, split: int) -> Tensor:
    """LayerNorm of `x` times 1 + `scale`, plus `shift`: both [segments, channels]."""
    y = F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    for part, factor in segments(y, split, 1 + scale):
        part.mul_(factor)
    for part, summand in segments(y, split, shift):
        part.add_(summand)
    return y


def gate_residual(x: Tensor, y: Tensor, gate: Tensor, split: int) -> Tensor:
    """`x` + `gate` · `y`, with `gate` [segments, channels]. `y` is used up."""
    for part, factor in segments(y, split, gate):
        part.mul_(factor)
    return y.add_(x)


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """RMSNorm of each head of `x` with `weight` [width], then its rotation, written to `out`.

    `x` and `out` are [1, rows, heads, width], `cos` and `sin` [rows, width / 2]: neighbours
    make a pair, which is turned as a complex number would be (RoFormer, arXiv:2104.09864).
    """
    variance = x.float().square().mean(-1, keepdim=True)
    y = (x * torch.rsqrt(variance + EPSILON)).to(weight.dtype) * weight
    real, imaginary = y.float().view(*y.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    out.copy_(turned.flatten(-2))
