"""Queries, keys or values rounded to e4m3, with a scale for each head: heads differ in size."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from vellumd.engine.kernels.language import jit, next_power_of_2, tl, warps
from vellumd.engine.linears import FP8, FP8_MAX, TINY

FLOAT = torch.float32
ROWS = 64
"""Rows that a program works on."""


def by_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [1, rows, heads, width] as e4m3, and scales [1, heads] in float32."""
    scale = (x.abs().amax(dim=(1, 3)).float().clamp(min=TINY) / FP8_MAX).to(x.dtype)
    small = (x / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return small, scale.float()


def by_head_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """`by_head` in two passes over `x`: the largest number of each head, then the rounding."""
    x = x.contiguous()
    rows, heads, width = x.shape[1:]
    largest = x.new_zeros((1, heads), dtype=FLOAT)
    small, scale = x.new_empty(x.shape, dtype=FP8), x.new_empty((1, heads), dtype=FLOAT)
    block = next_power_of_2(width)
    grid, with_warps = (-(-rows // ROWS), heads), warps(ROWS * block)
    _largest[grid](x, largest, rows, heads, width, many=ROWS, block=block, num_warps=with_warps)
    _by_head[grid](
        x, largest, small, scale, rows, heads, width, FP8_MAX, TINY, many=ROWS, block=block,
        num_warps=with_warps,
    )  # fmt: skip
    return small, scale


@jit
def _tile(rows, heads, width, many: tl.constexpr, block: tl.constexpr):
    """Where the program's rows of its head lie, and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)[:, None]
    column = tl.arange(0, block)[None, :]
    here = (row * heads + tl.program_id(1)) * width + column
    return here, (row < rows) & (column < width)


@jit
def _largest(x, largest, rows, heads, width, many: tl.constexpr, block: tl.constexpr):
    """Some rows of one head a program; all programs of a head meet in `largest`."""
    here, inside = _tile(rows, heads, width, many, block)
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    tl.atomic_max(largest + tl.program_id(1), tl.max(tl.abs(values)))


@jit
def _by_head(
    x, largest, small, scale, rows, heads, width, limit, tiny,
    many: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The same rows, rounded."""
    here, inside = _tile(rows, heads, width, many, block)
    factor = tl.maximum(tl.load(largest + tl.program_id(1)), tiny) / limit
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32) / factor
    rounded = tl.minimum(tl.maximum(values, -limit), limit)
    tl.store(small + here, rounded.to(tl.float8e4nv), mask=inside)
    tl.store(scale + tl.program_id(1), factor, mask=tl.program_id(0) == 0)
