"""What the VAE does between its convolutions: norm with SiLU, sums, larger sizes, attention.

Features are [batch, channels, height, width], channels last in memory: one pixel's lie side
by side. A convolution's bias is taken in here, where a pass over the features is made anyhow.
"""

# Triton is not typed; torch annotates in part only.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.language import jit, next_power_of_2, tl

TILE = 4096
"""Numbers that a program works on."""
WARPS = 4
"""Of a program: 32 numbers a thread."""
SMALLEST = 1e-12
"""Length that a pixel's channels are divided by at least: that of `F.normalize`."""
SCORES = 1 << 25
"""Most scores that attention by products holds at once: 128 MB in float32."""


def norm(x: Tensor, bias: Tensor | None, weight: Tensor, silu: bool) -> Tensor:
    """RMSNorm over the channels of `x` + `bias` with `weight`, then SiLU if wanted.

    `bias` and `weight` are [channels]. It rounds where diffusers' QwenImageRMS_norm does.
    """
    if bias is not None:
        x = x + bias[:, None, None]
    y = F.normalize(x.float(), dim=1).to(x.dtype) * x.shape[1] ** 0.5 * weight[:, None, None]
    return F.silu(y) if silu else y


def add(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """`x` + `bias` [channels] + `other`. `x` is used up."""
    return x.add_(bias[:, None, None]).add_(other)


def double(x: Tensor) -> Tensor:
    """`x` with every pixel twice in both directions.

    Diffusers does so in float32, which changes no number.
    """
    return F.interpolate(x, scale_factor=2.0, mode="nearest-exact")


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one head, [batch, pixels, channels] each, as torch does it."""
    q, k, v = query[:, None], key[:, None], value[:, None]
    return F.scaled_dot_product_attention(q, k, v)[:, 0]


def attend_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` by two matrix products, some rows after the other; scores are float32.

    Flash kernels take heads of 256 channels at most, and the VAE's has 384: what torch has
    for those leaves most of a card idle.
    """
    rows = max(1, SCORES // (key.shape[0] * key.shape[1]))
    keys, scale = key.transpose(1, 2), query.shape[-1] ** -0.5
    mixed = [
        _scores(some * scale, keys).softmax(dim=-1).to(value.dtype) @ value
        for some in query.split(rows, dim=1)
    ]
    return torch.cat(mixed, dim=1)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    if query.dtype == torch.float32:
        return query @ keys
    return torch.bmm(query, keys, out_dtype=torch.float32)  # cuBLAS alone can


def norm_triton(x: Tensor, bias: Tensor | None, weight: Tensor, silu: bool) -> Tensor:
    """`norm` in one pass over `x`."""
    x = x.contiguous(memory_format=torch.channels_last)
    made, channels = torch.empty_like(x), x.shape[1]
    pixels, many, block = _tiling(x)
    _norm[(-(-pixels // many),)](
        x, bias, weight.contiguous(), made, pixels, channels, channels**0.5, SMALLEST**2,
        silu=silu, many=many, block=block, num_warps=WARPS,
    )  # fmt: skip
    return made


def add_triton(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """`add` in one pass."""
    x = x.contiguous(memory_format=torch.channels_last)
    other = other.contiguous(memory_format=torch.channels_last)
    pixels, many, block = _tiling(x)
    _add[(-(-pixels // many),)](
        x, bias, other, pixels, x.shape[1], many=many, block=block, num_warps=WARPS
    )
    return x


def double_triton(x: Tensor) -> Tensor:
    """`double`, reading each number once."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    larger = x.new_empty((batch, 2 * height, 2 * width, channels)).permute(0, 3, 1, 2)
    pixels, many, block = _tiling(x)
    _double[(-(-pixels // many),)](
        x, larger, pixels, channels, width, many=many, block=block, num_warps=WARPS
    )
    return larger


def _tiling(x: Tensor) -> tuple[int, int, int]:
    """Pixels of `x`, pixels of a program, and the block that a pixel's channels fit in."""
    block = next_power_of_2(x.shape[1])
    return x.numel() // x.shape[1], max(1, TILE // block), block


@jit
def _tile(pixels, channels, many: tl.constexpr, block: tl.constexpr):
    """Where the program's numbers lie, which channel each is of, and which of them there are.

    Channels are told for each number: those of one pixel, shared by all, would be read in
    another layout than the pixels, and shuffled between threads.
    """
    pixel = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)[:, None]
    channel = tl.broadcast_to(tl.arange(0, block)[None, :], [many, block])
    return pixel * channels + channel, channel, (pixel < pixels) & (channel < channels)


@jit
def _norm(
    x, bias, weight, made, pixels, channels, root, smallest,
    silu: tl.constexpr, many: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some pixels a program, all channels of each."""
    here, channel, inside = _tile(pixels, channels, many, block)
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    if bias is not None:
        values += tl.load(bias + channel, mask=inside, other=0).to(tl.float32)
    power = tl.sum(values * values, axis=1)[:, None]
    values *= tl.rsqrt(tl.maximum(power, smallest)) * root
    values *= tl.load(weight + channel, mask=inside, other=0).to(tl.float32)
    if silu:
        values *= tl.sigmoid(values)
    tl.store(made + here, values.to(made.dtype.element_ty), mask=inside)


@jit
def _add(x, bias, other, pixels, channels, many: tl.constexpr, block: tl.constexpr):
    """The same pixels' sums."""
    here, channel, inside = _tile(pixels, channels, many, block)
    values = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    values += tl.load(bias + channel, mask=inside, other=0).to(tl.float32)
    values += tl.load(other + here, mask=inside, other=0).to(tl.float32)
    tl.store(x + here, values.to(x.dtype.element_ty), mask=inside)


@jit
def _double(x, made, pixels, channels, width, many: tl.constexpr, block: tl.constexpr):
    """The same pixels, each to four places."""
    here, channel, inside = _tile(pixels, channels, many, block)
    values = tl.load(x + here, mask=inside, other=0)
    pixel = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)[:, None]
    row, column = pixel // width, pixel % width
    there = made + (4 * row * width + 2 * column) * channels + channel
    below = there + 2 * width * channels
    tl.store(there, values, mask=inside)
    tl.store(there + channels, values, mask=inside)
    tl.store(below, values, mask=inside)
    tl.store(below + channels, values, mask=inside)
