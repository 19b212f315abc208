"""LayerNorm with modulation, the gate before a residual sum, and both at once.

A picture stream [1, rows, channels] has up to two segments with a modulation each: the
target's first `split` rows, and the references after them.
"""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.feed import Fed, Need, room, store_small
from vellumd.engine.kernels.language import kernel, next_power_of_2, tl, warps
from vellumd.engine.linears import FP8_MAX, TINY

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


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need) -> Fed:
    """LayerNorm of `x` times 1 + `scale`, plus `shift`: both [segments, channels]."""
    y = F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    for part, factor in segments(y, split, 1 + scale):
        part.mul_(factor)
    for part, summand in segments(y, split, shift):
        part.add_(summand)
    return Fed.of(y, need)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor, split: int) -> Tensor:
    """`x` + `gate` · `y`, with `gate` [segments, channels]. `y` is used up."""
    for part, factor in segments(y, split, gate):
        part.mul_(factor)
    return y.add_(x)


def gate_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need
) -> tuple[Tensor, Fed]:
    """`gate_residual`, and `norm_modulate` of what it gives."""
    x = gate_residual(x, y, gate, split)
    return x, norm_modulate(x, shift, scale, split, need)


def norm_modulate_triton(x: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need) -> Fed:
    """`norm_modulate` in one pass over `x`."""
    return _normed(x, None, None, shift, scale, split, need)


def gate_norm_modulate_triton(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need
) -> tuple[Tensor, Fed]:
    """`gate_norm_modulate` in one pass over `x` and `y`."""
    y = y.contiguous()
    return y, _normed(x, y, gate.contiguous(), shift, scale, split, need)


def _normed(
    x: Tensor, y: Tensor | None, gate: Tensor | None,
    shift: Tensor, scale: Tensor, split: int, need: Need,
) -> Fed:  # fmt: skip
    x, (_, rows, channels) = x.contiguous(), x.shape
    whole = torch.empty_like(x) if need.whole else None
    small, small_scale = room(x) if need.small else (None, None)
    block = next_power_of_2(channels)
    _norm_modulate(
        (rows, 1, 1),
        (x, y, gate, shift.contiguous(), scale.contiguous(), whole, small, small_scale),
        (split if shift.shape[0] == 2 else rows,),
        (channels, EPSILON, FP8_MAX, TINY, y is not None, need.whole, need.small, block),
        warps(block),
    )
    return Fed(whole, small, small_scale, x.dtype)


@kernel("split")
def _norm_modulate(
    x, y, gate, shift, scale, whole, small, small_scale, split,
    channels: tl.constexpr, epsilon: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr,
    gated: tl.constexpr, as_whole: tl.constexpr, as_small: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row a program. If `gated`, `y` becomes the sum, and that is what is normed."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < channels
    here, at = row * channels + columns, tl.where(row < split, 0, channels) + columns
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    if gated:
        factor = tl.load(gate + at, mask=inside, other=0).to(tl.float32)
        values += tl.load(y + here, mask=inside, other=0).to(tl.float32) * factor
        # The norm is that of the sum as it is kept, as it is of the twin.
        rounded = values.to(y.dtype.element_ty)
        tl.store(y + here, rounded, mask=inside)
        values = rounded.to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values) / channels, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / channels + epsilon)
    factor = 1 + tl.load(scale + at, mask=inside, other=0).to(tl.float32)
    made = normed * factor + tl.load(shift + at, mask=inside, other=0).to(tl.float32)
    if as_whole:
        tl.store(whole + here, made.to(whole.dtype.element_ty), mask=inside)
    if as_small:
        store_small(made, small, small_scale, row, columns, inside, channels, largest, tiny)


def gate_residual_triton(x: Tensor, y: Tensor, gate: Tensor, split: int) -> Tensor:
    """`gate_residual` in one pass."""
    x, y, channels = x.contiguous(), y.contiguous(), x.shape[-1]
    block = next_power_of_2(channels)
    rows = x.shape[1]
    _gate_residual(
        (rows, 1, 1), (x, y, gate.contiguous()), (split if gate.shape[0] == 2 else rows,),
        (channels, block), warps(block),
    )  # fmt: skip
    return y


@kernel("split")
def _gate_residual(x, y, gate, split, channels: tl.constexpr, block: tl.constexpr):
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < channels
    here = row * channels + columns
    at = tl.where(row < split, 0, channels) + columns
    factor = tl.load(gate + at, mask=inside, other=0).to(tl.float32)
    made = tl.load(y + here, mask=inside, other=0).to(tl.float32) * factor
    made += tl.load(x + here, mask=inside, other=0).to(tl.float32)
    tl.store(y + here, made.to(y.dtype.element_ty), mask=inside)
