"""The input of linears: as it is, and rounded to e4m3 once for all that take it so."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.language import jit, kernel, next_power_of_2, tl, warps
from vellumd.engine.linears import FP8, FP8_MAX, TINY, ByToken, by_token
from vellumd.engine.lora import Branched


class Need(NamedTuple):
    """The forms that some linears take their input in."""

    whole: bool
    small: bool

    @classmethod
    def of(cls, *linears: torch.nn.Module) -> Need:
        """What `linears` take together; a LoRA branch beside e4m3 takes both."""
        bases = [linear.base if isinstance(linear, Branched) else linear for linear in linears]
        small = [isinstance(base, ByToken) for base in bases]
        whole = [
            isinstance(linear, Branched) or not is_small
            for linear, is_small in zip(linears, small, strict=True)
        ]
        return cls(any(whole), any(small))


class Fed(NamedTuple):
    """Rows as `whole` [1, rows, channels], as `small` with `scale`, or both.

    Those are e4m3 [rows, channels] and float32 [rows, 1].
    """

    whole: Tensor | None
    small: Tensor | None
    scale: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, need: Need) -> Fed:
        """`x` in the forms of `need`, in plain PyTorch."""
        if not need.small:
            return cls(x, None, None, x.dtype)
        small, scale = by_token(x[0])
        return cls(x if need.whole else None, small, scale, x.dtype)

    def first(self, rows: int) -> Fed:
        """The first `rows` of it."""
        return Fed(
            None if self.whole is None else self.whole[:, :rows],
            None if self.small is None else self.small[:rows],
            None if self.scale is None else self.scale[:rows],
            self.dtype,
        )

    def to(self, linear: torch.nn.Module) -> Tensor:
        """What `linear` makes of it: [1, rows, out]."""
        if isinstance(linear, ByToken) and self.small is not None and self.scale is not None:
            return linear.multiply(self.small, self.scale, self.dtype)[None]
        if isinstance(linear, Branched) and isinstance(linear.base, ByToken):
            assert self.whole is not None
            return self.to(linear.base) + F.linear(F.linear(self.whole, linear.down), linear.up)
        y: Tensor = linear(self.whole)
        return y

    def put(self, linear: torch.nn.Module, out: Tensor) -> None:
        """Put what `linear` makes of it into `out` [1, rows, heads, width]."""
        flat = out.flatten(2)[0]
        if isinstance(linear, ByToken) and self.small is not None and self.scale is not None:
            made = linear.multiply(self.small, self.scale, self.dtype, flat)
        else:
            made = self.to(linear)[0]
        if made is not flat:
            flat.copy_(made)


def quantise(x: Tensor, need: Need) -> Fed:
    """`x` in the forms of `need`, rounded by Triton."""
    if not need.small:
        return Fed.of(x, need)
    x = x.contiguous()
    small, scale = room(x)
    rows, channels = small.shape
    block = next_power_of_2(channels)
    _quantise((rows, 1, 1), (x, small, scale), (), (channels, FP8_MAX, TINY, block), warps(block))
    return Fed(x if need.whole else None, small, scale, x.dtype)


def room(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for `x` in e4m3 and its scales."""
    rows, device = x.shape[1], x.device
    small = torch.empty((rows, x.shape[2]), dtype=FP8, device=device)
    return small, torch.empty((rows, 1), dtype=torch.float32, device=device)


@kernel()
def _quantise(
    x, small, scale,
    channels: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < channels
    values = tl.load(x + row * channels + columns, mask=inside, other=0).to(tl.float32)
    store_small(values, small, scale, row, columns, inside, channels, largest, tiny)


@jit
def store_small(values, small, scale, row, columns, inside, channels, largest, tiny):
    """A program's row as e4m3, scaled so that its largest number is e4m3's."""
    factor = tl.maximum(tl.max(tl.abs(values)), tiny) / largest
    # Times the reciprocal: a division is eight instructions, which a pass waits for. What that
    # puts beyond e4m3's largest number is rounded to it.
    made = (values * (1 / factor)).to(tl.float8e4nv)
    tl.store(small + row * channels + columns, made, mask=inside)
    tl.store(scale + row, factor)
