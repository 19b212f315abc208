"""Queries, keys or values rounded to e4m3, with a scale for each head: heads differ in size."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from vellumd.engine.kernels.language import jit, kernel, next_power_of_2, tl, warps
from vellumd.engine.linears import FP8, FP8_MAX, TINY

Rounded = tuple[Tensor, Tensor]
"""Rows [1, rows, heads, width] in e4m3, and scales [1, heads] in float32."""
ROWS = 64
"""Rows that a program works on."""


def by_head(*mixed: Tensor) -> tuple[Rounded, ...]:
    """Each of `mixed` [1, rows, heads, width] rounded."""
    return tuple(map(_rounded, mixed))


def _rounded(x: Tensor) -> Rounded:
    scale = (x.abs().amax(dim=(1, 3)).float().clamp(min=TINY) / FP8_MAX).to(x.dtype)
    small = (x / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return small, scale.float()


def by_head_triton(query: Tensor, key: Tensor, value: Tensor) -> tuple[Rounded, ...]:
    """`by_head` in two passes over all three: the largest number of each head, then the rounding.

    `key` and `value` have as many rows; all are of one type.
    """
    mixed = tuple(x.contiguous() for x in (query, key, value))
    small = tuple(torch.empty_like(x, dtype=FP8) for x in mixed)
    (_, asked, heads, width), rows = query.shape, key.shape[1]
    largest = torch.zeros((3, 1, heads), dtype=torch.float32, device=query.device)
    scale = torch.empty_like(largest)
    block = next_power_of_2(width)
    grid, count = (-(-max(asked, rows) // ROWS), heads, 3), warps(ROWS * block)
    sizes = heads, width, ROWS, block
    _largest(grid, (*mixed, largest), (asked, rows), sizes, count)
    _by_head(grid, (*mixed, *small, largest, scale), (asked, rows), (FP8_MAX, TINY, *sizes), count)
    return tuple(zip(small, scale.unbind(), strict=True))


@jit
def _one_of(query, key, value):
    """That of the three which is the program's."""
    which = tl.program_id(2)
    return tl.where(which == 0, query, tl.where(which == 1, key, value))


@jit
def _tile(asked, rows, heads, width, many: tl.constexpr, block: tl.constexpr):
    """Where the program's rows of its head lie, and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)[:, None]
    column = tl.arange(0, block)[None, :]
    here = (row * heads + tl.program_id(1)) * width + column
    return here, (row < _one_of(asked, rows, rows)) & (column < width)


@kernel("asked", "rows")
def _largest(
    query, key, value, largest, asked, rows,
    heads: tl.constexpr, width: tl.constexpr, many: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some rows of one head a program; all programs of a head meet in `largest`."""
    here, inside = _tile(asked, rows, heads, width, many, block)
    x = _one_of(query, key, value)
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    head = tl.program_id(2) * heads + tl.program_id(1)
    tl.atomic_max(largest + head, tl.max(tl.abs(values)))


@kernel("asked", "rows")
def _by_head(
    query, key, value, small_query, small_key, small_value, largest, scale, asked, rows,
    limit: tl.constexpr, tiny: tl.constexpr,
    heads: tl.constexpr, width: tl.constexpr, many: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The same rows, rounded."""
    here, inside = _tile(asked, rows, heads, width, many, block)
    head = tl.program_id(2) * heads + tl.program_id(1)
    factor = tl.maximum(tl.load(largest + head), tiny) / limit
    x, small = _one_of(query, key, value), _one_of(small_query, small_key, small_value)
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32) / factor
    rounded = tl.minimum(tl.maximum(values, -limit), limit)
    tl.store(small + here, rounded.to(tl.float8e4nv), mask=inside)
    tl.store(scale + head, factor, mask=tl.program_id(0) == 0)
