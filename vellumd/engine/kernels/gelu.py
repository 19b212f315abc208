"""GELU by its tanh approximation (arXiv:1606.08415)."""

# Triton is not typed, and compiles no starred tuples.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: RUF005

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.feed import Fed, Need, room
from vellumd.engine.kernels.language import kernel, tl, warps
from vellumd.engine.kernels.row import load_row, piece, store_row, store_small
from vellumd.engine.linears import FP8_MAX, TINY


def gelu(x: Tensor, need: Need) -> Fed:
    """GELU of `x` [prompts, rows, channels]."""
    return Fed.of(F.gelu(x, approximate="tanh"), need)


def gelu_triton(x: Tensor, need: Need) -> Fed:
    """`gelu` in one pass."""
    x, (prompts, rows, channels) = x.contiguous(), x.shape
    whole = torch.empty_like(x) if need.whole else None
    small, scale = room(prompts * rows, x) if need.small else (None, None)
    block = piece(channels)
    _gelu(
        (prompts * rows, 1, 1), (x, whole, small, scale), (),
        (channels, FP8_MAX, TINY, need.whole, need.small, block), warps(block),
    )  # fmt: skip
    return Fed(whole, small, scale, x.dtype, prompts)


@kernel()
def _gelu(
    x, whole, small, scale,
    channels: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr,
    as_whole: tl.constexpr, as_small: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row a program. x/2 · (1 + tanh u) is x / (1 + exp(-2u)).

    By powers of two and a reciprocal square root, squared: one instruction each, where exp and a
    division are ten. The pass waits for its instructions, not for memory.
    """
    row = tl.program_id(0).to(tl.int64)
    values, made = load_row(x, row * channels, channels, block), ()
    for number in tl.static_range(len(values)):
        value = values[number]
        # -2 · sqrt(2 / pi) · log2(e), alone and times 0.044715.
        power = value * (-2.302208198144325 - 0.1029432395800235 * value * value)
        root = tl.rsqrt(1 + tl.exp2(power))
        made = made + (value * root * root,)
    if as_whole:
        store_row(whole, row * channels, made, channels, block)
    if as_small:
        store_small(made, small, scale, row, channels, block, largest, tiny)
