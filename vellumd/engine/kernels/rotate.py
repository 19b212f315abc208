"""The norm of queries and keys, and the rotation by their positions."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from vellumd.engine.kernels.language import jit, next_power_of_2, tl, warps
from vellumd.engine.kernels.modulate import EPSILON


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


def norm_rotate_triton(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`norm_rotate` in one pass."""
    rows, heads, width = x.shape[1:]
    if not out.is_contiguous():
        raise ValueError("norm_rotate_triton writes to whole rows")
    heads_block, half_block = next_power_of_2(heads), next_power_of_2(width // 2)
    _norm_rotate[(rows,)](
        x.contiguous(), weight, cos, sin, out, heads, width, EPSILON, heads_block=heads_block,
        half_block=half_block, num_warps=warps(2 * heads_block * half_block),
    )  # fmt: skip


@jit
def _norm_rotate(
    x, weight, cos, sin, out, heads, width, epsilon,
    heads_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    """All heads of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, heads_block)[:, None], tl.arange(0, half_block)[None, :]
    half = width // 2
    wide = pair < half
    inside = (head < heads) & wide
    here = row * heads * width + head * width + 2 * pair
    real = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    imaginary = tl.load(x + here + 1, mask=inside, other=0).to(tl.float32)
    power = tl.sum(real * real + imaginary * imaginary, axis=1) / width
    factor = tl.rsqrt(power + epsilon)[:, None]
    real *= factor * tl.load(weight + 2 * pair, mask=wide, other=0).to(tl.float32)
    imaginary *= factor * tl.load(weight + 2 * pair + 1, mask=wide, other=0).to(tl.float32)
    c = tl.load(cos + row * half + pair, mask=wide, other=0)
    s = tl.load(sin + row * half + pair, mask=wide, other=0)
    turned = real * c - imaginary * s
    tl.store(out + here, turned.to(out.dtype.element_ty), mask=inside)
    turned = real * s + imaginary * c
    tl.store(out + here + 1, turned.to(out.dtype.element_ty), mask=inside)
