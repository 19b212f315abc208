"""LayerNorm with modulation, alone and of a residual sum with the gate before it.

A picture stream [prompts, rows, channels] has up to two segments with a modulation each: the
target's first `split` rows of each prompt, and the references after them.
"""

# Triton is not typed, its tuples grow, and it compiles no starred ones.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment"
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.feed import Fed, Need, room
from vellumd.engine.kernels.language import jit, kernel, tl, warps
from vellumd.engine.kernels.row import load_row, piece, store_row, store_small
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


def gate_residual(x: Tensor, y: Tensor, gate: Tensor, split: int) -> None:
    """Add `gate` · `y` to `x`, with `gate` [segments, channels]. `y` is used up."""
    for part, factor in segments(y, split, gate):
        part.mul_(factor)
    x.add_(y)


def gate_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need
) -> Fed:
    """`gate_residual`, and `norm_modulate` of what `x` is then."""
    gate_residual(x, y, gate, split)
    return norm_modulate(x, shift, scale, split, need)


def norm_modulate_triton(x: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need) -> Fed:
    """`norm_modulate` in one pass over `x`."""
    return _normed(x, None, None, shift, scale, split, need)


def gate_norm_modulate_triton(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, split: int, need: Need
) -> Fed:
    """`gate_norm_modulate` in one pass over `x` and `y`."""
    return _normed(in_place(x), y.contiguous(), gate.contiguous(), shift, scale, split, need)


def in_place(x: Tensor) -> Tensor:
    """`x`, which a kernel is to change; raises ValueError where it would change a copy."""
    if not x.is_contiguous():
        raise ValueError("Triton's kernels change whole rows in place")
    return x


def _normed(
    x: Tensor, y: Tensor | None, gate: Tensor | None,
    shift: Tensor, scale: Tensor, split: int, need: Need,
) -> Fed:  # fmt: skip
    x, (prompts, rows, channels) = x.contiguous(), x.shape
    whole = torch.empty_like(x) if need.whole else None
    small, small_scale = room(prompts * rows, x) if need.small else (None, None)
    block = piece(channels)
    _norm_modulate(
        (prompts * rows, 1, 1),
        (x, y, gate, shift.contiguous(), scale.contiguous(), whole, small, small_scale),
        (rows, split if shift.shape[0] == 2 else rows),
        (channels, EPSILON, FP8_MAX, TINY, y is not None, need.whole, need.small, block),
        warps(block),
    )
    return Fed(whole, small, small_scale, x.dtype, prompts)


@kernel("rows", "split")
def _norm_modulate(
    x, y, gate, shift, scale, whole, small, small_scale, rows, split,
    channels: tl.constexpr, epsilon: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr,
    gated: tl.constexpr, as_whole: tl.constexpr, as_small: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row a program. If `gated`, `x` becomes the sum, and that is what is normed."""
    row = tl.program_id(0).to(tl.int64)
    start, segment = row * channels, tl.where(row % rows < split, 0, channels)
    values = load_row(x, start, channels, block)
    if gated:
        values = _summed(values, x, y, gate, start, segment, channels, block)
    # Read before the sums over the row, which wait for all of it, rather than after.
    factors = load_row(scale, segment, channels, block)
    summands = load_row(shift, segment, channels, block)
    centred, root = _centred(values, channels, block, epsilon)
    made = ()
    for number in tl.static_range(len(centred)):
        made = made + (centred[number] * root * (1 + factors[number]) + summands[number],)
    if as_whole:
        store_row(whole, start, made, channels, block)
    if as_small:
        store_small(made, small, small_scale, row, channels, block, largest, tiny)


@jit
def _summed(values, x, y, gate, start, segment, channels: tl.constexpr, block: tl.constexpr):
    """`values` of `x` and those of `y` times the gate, as `x` keeps them."""
    added = load_row(y, start, channels, block)
    factors = load_row(gate, segment, channels, block)
    sums, kept = (), ()
    for number in tl.static_range(len(values)):
        made = (values[number] + added[number] * factors[number]).to(x.dtype.element_ty)
        # The norm is that of the sum as it is kept, as it is of the twin.
        sums, kept = sums + (made,), kept + (made.to(tl.float32),)
    store_row(x, start, sums, channels, block)
    return kept


@jit
def _centred(values, channels: tl.constexpr, block: tl.constexpr, epsilon: tl.constexpr):
    """A row's `values` less their mean, and what makes their deviation one."""
    total = values[0]
    for number in tl.static_range(1, len(values)):
        total += values[number]
    mean = tl.sum(total) / channels
    centred, power = (), tl.zeros([block], tl.float32)
    for number in tl.static_range(len(values)):
        inside = number * block + tl.arange(0, block) < channels
        rest = tl.where(inside, values[number] - mean, 0.0)
        centred, power = centred + (rest,), power + rest * rest
    return centred, tl.rsqrt(tl.sum(power) / channels + epsilon)
