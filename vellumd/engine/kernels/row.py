"""Rows of a tensor in a program of Triton's, each cut into pieces.

A program works on blocks of a power of two, and Qwen-Image's rows are three times one: as one
block of the next power every fourth number would be none. These kernels wait for their
instructions as much as for memory, so that cost nearly what it sounds like.
"""

# Triton is not typed, and compiles no starred tuples.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: RUF005

from __future__ import annotations

from vellumd.engine.kernels.language import jit, next_power_of_2, tl

PIECES = 3
"""Of a row, at most."""


def piece(channels: int) -> int:
    """Numbers of a piece of a row of `channels`; the last piece may go past the row's end."""
    return next_power_of_2(-(-channels // PIECES))


@jit
def load_row(x, start, channels: tl.constexpr, block: tl.constexpr):
    """The pieces of `channels` numbers from `start` on, in float32; zeros after the row's end."""
    pieces = ()
    for first in tl.static_range(0, channels, block):
        columns = first + tl.arange(0, block)
        # The comparison is known when it is compiled where pieces fill the row.
        read = tl.load(x + start + columns, mask=columns < channels, other=0)
        pieces = pieces + (read.to(tl.float32),)
    return pieces


@jit
def store_row(x, start, pieces, channels: tl.constexpr, block: tl.constexpr):
    """Write the row's `pieces` from `start` on, rounded to what `x` holds."""
    for number in tl.static_range(len(pieces)):
        columns = number * block + tl.arange(0, block)
        made = pieces[number].to(x.dtype.element_ty)
        tl.store(x + start + columns, made, mask=columns < channels)


@jit
def store_small(
    pieces, small, scale, row, channels: tl.constexpr, block: tl.constexpr,
    largest: tl.constexpr, tiny: tl.constexpr,
):  # fmt: skip
    """Write a row as e4m3, scaled so that its largest number is e4m3's."""
    top = tl.abs(pieces[0])
    for number in tl.static_range(1, len(pieces)):
        top = tl.maximum(top, tl.abs(pieces[number]))
    factor = tl.maximum(tl.max(top), tiny) / largest
    # Times the reciprocal: a division is eight instructions, which a pass waits for. What that
    # puts beyond e4m3's largest number is rounded to it.
    inverse, made = 1 / factor, ()
    for number in tl.static_range(len(pieces)):
        made = made + (pieces[number] * inverse,)
    store_row(small, row * channels, made, channels, block)
    tl.store(scale + row, factor)
