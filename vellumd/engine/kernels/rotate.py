"""The norm of queries and keys, and the rotation by their positions."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from vellumd.engine.kernels.language import kernel, next_power_of_2, tl, warps
from vellumd.engine.kernels.modulate import EPSILON

MANY = 16
"""Heads that a program works on."""


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """RMSNorm of each head of `x` with `weight` [width], then its rotation, written to `out`.

    `x` and `out` are [prompts, rows, heads, width], `cos` and `sin` [rows, width / 2]: neighbours
    make a pair, which is turned as a complex number would be (RoFormer, arXiv:2104.09864).
    `cos` and `sin` may have more rows; the first ones are taken.
    """
    rows = x.shape[1]
    # One prompt at a time: in float32 rows are twice as wide, and several times there.
    for one, place in zip(torch.split(x, 1), torch.split(out, 1), strict=True):
        variance = one.float().square().mean(-1, keepdim=True)
        y = (one * torch.rsqrt(variance + EPSILON)).to(weight.dtype) * weight
        pairs = y.float().view(*y.shape[:-1], -1, 2)
        place.copy_(_turned(pairs, cos[:rows, None], sin[:rows, None]).flatten(-2))


def _turned(pairs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`pairs` [.., 2] as complex numbers times cos + i·sin: the same bits either way."""
    if torch.compiler.is_compiling():  # Inductor knows no complex numbers.
        real, imaginary = pairs.unbind(-1)
        turned = real * cos - imaginary * sin, real * sin + imaginary * cos
        return torch.stack(turned, dim=-1)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))


def norm_rotate_triton(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`norm_rotate` in one pass."""
    prompts, rows, heads, width = x.shape
    if not out[0].is_contiguous() or out.stride(0) % width:
        raise ValueError("norm_rotate_triton writes to whole rows")
    count, block = rows * heads, next_power_of_2(width)
    _norm_rotate(
        (-(-count // MANY), prompts, 1), (x.contiguous(), weight, cos, sin, out),
        (count, out.stride(0) // width), (heads, width, EPSILON, MANY, block), warps(MANY * block),
    )  # fmt: skip


@kernel("count", "apart")
def _norm_rotate(
    x, weight, cos, sin, out, count, apart, heads: tl.constexpr, width: tl.constexpr,
    epsilon: tl.constexpr, many: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`many` heads a program, of one row after the other.

    Prompts lie `apart` heads from each other in `out`; counted in numbers, it would not be known
    that vectors can be written there. A head is read and written whole and taken apart into pairs
    in between: read by every other number it took twenty times as long.
    """
    number = tl.program_id(0) * many + tl.arange(0, many)[:, None]
    column, pair = tl.arange(0, block)[None, :], tl.arange(0, block // 2)[None, :]
    inside, half = (number < count) & (column < width), width // 2
    here, prompt = number.to(tl.int64) * width + column, tl.program_id(1).to(tl.int64)
    values = tl.load(x + prompt * count * width + here, mask=inside, other=0).to(tl.float32)
    power = tl.sum(values * values, axis=1) / width
    values *= tl.rsqrt(power + epsilon)[:, None]
    values *= tl.load(weight + column, mask=column < width, other=0).to(tl.float32)
    real, imaginary = tl.split(tl.reshape(values, (many, block // 2, 2)))
    at, wide = number // heads * half + pair, (number < count) & (pair < half)
    c = tl.load(cos + at, mask=wide, other=0)
    s = tl.load(sin + at, mask=wide, other=0)
    turned = tl.join(real * c - imaginary * s, real * s + imaginary * c)
    turned = tl.reshape(turned, (many, block)).to(out.dtype.element_ty)
    tl.store(out + prompt * apart * width + here, turned, mask=inside)
