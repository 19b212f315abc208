"""The input of linears: as it is, and rounded to e4m3 once for all that take it so."""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.kernels.language import kernel, tl, warps
from vellumd.engine.kernels.row import load_row, piece, store_small
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
    """Rows as `whole` [prompts, rows, channels], as `small` with `scale`, or both.

    Those are e4m3 [prompts · rows, channels] and float32 [prompts · rows, 1].
    """

    whole: Tensor | None
    small: Tensor | None
    scale: Tensor | None
    dtype: torch.dtype
    prompts: int = 1

    @classmethod
    def of(cls, x: Tensor, need: Need) -> Fed:
        """`x` [prompts, rows, channels] in the forms of `need`, in plain PyTorch."""
        if not need.small:
            return cls(x, None, None, x.dtype, len(x))
        small, scale = by_token(x.flatten(0, 1))
        return cls(x if need.whole else None, small, scale, x.dtype, len(x))

    def first(self, rows: int) -> Fed:
        """The first `rows` of each prompt's."""
        return Fed(
            None if self.whole is None else self.whole[:, :rows],
            None if self.small is None else self._first(self.small, rows),
            None if self.scale is None else self._first(self.scale, rows),
            self.dtype,
            self.prompts,
        )

    def _by_prompt(self, x: Tensor) -> Tensor:
        return x.view(self.prompts, -1, x.shape[1])

    def _first(self, x: Tensor, rows: int) -> Tensor:
        return self._by_prompt(x)[:, :rows].flatten(0, 1)

    def to(self, linear: torch.nn.Module, out: Tensor | None = None) -> Tensor:
        """What `linear` makes of it: [prompts, rows, out]; in `out`, if given.

        Its rows are neighbours, so that the product itself is written there.
        """
        if out is not None and torch.compiler.is_compiling():
            # The compiler says where products go; of e4m3 it takes none with `out` and any size.
            return out.copy_(self.to(linear))
        if isinstance(linear, ByToken) and self.small is not None and self.scale is not None:
            flat = None if out is None else out.flatten(0, 1)
            return self._by_prompt(linear.multiply(self.small, self.scale, self.dtype, flat))
        assert self.whole is not None
        if isinstance(linear, Branched):
            # In place: a third tensor as wide as the MLP's would be the most there ever is.
            based = self.to(linear.base, out)
            return based.add_(F.linear(F.linear(self.whole, linear.down), linear.up))
        if out is not None and type(linear) is torch.nn.Linear:
            rows, flat = self.whole.flatten(0, 1), out.flatten(0, 1)
            torch.addmm(linear.bias, rows, linear.weight.t(), out=flat)
            return out
        y: Tensor = linear(self.whole)
        return y if out is None else out.copy_(y)

    def put(self, linear: torch.nn.Module, outs: Sequence[Tensor]) -> None:
        """Put what `linear` makes of it into `outs`, some rows after the others.

        Each is [prompts, rows, heads, width]. The product itself is written to a single one
        whose rows are neighbours.
        """
        if len(outs) == 1 and outs[0].is_contiguous():
            self.to(linear, outs[0].flatten(2))
            return
        pieces = torch.split(self.to(linear), [out.shape[1] for out in outs], dim=1)
        for rows, out in zip(pieces, outs, strict=True):
            out.copy_(rows.view_as(out))


def joined(parts: Sequence[Tensor], need: Need) -> Fed:
    """Rows of `parts` [1, rows, channels], one after the other, in the forms of `need`."""
    return Fed.of(parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1), need)


def joined_triton(parts: Sequence[Tensor], need: Need) -> Fed:
    """`joined`, rounded by Triton: to e4m3 alone without joining them first."""
    if not need.small:
        return joined(parts, need)
    if need.whole and len(parts) > 1:
        parts = [torch.cat(list(parts), dim=1)]
    channels = parts[0].shape[2]
    small, scale = room(sum(part.shape[1] for part in parts), parts[0])
    block, start = piece(channels), 0
    for part in parts:
        tensors = part.contiguous(), small, scale
        constants = channels, FP8_MAX, TINY, block
        _quantise((part.shape[1], 1, 1), tensors, (start,), constants, warps(block))
        start += part.shape[1]
    return Fed(parts[0] if need.whole else None, small, scale, parts[0].dtype)


def room(rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Room for `rows` as wide as those of `like` in e4m3, and for their scales."""
    small = torch.empty((rows, like.shape[-1]), dtype=FP8, device=like.device)
    return small, torch.empty((rows, 1), dtype=torch.float32, device=like.device)


@kernel("start")
def _quantise(
    x, small, scale, start,
    channels: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row a program; that of `x` is put `start` rows further on."""
    row = tl.program_id(0).to(tl.int64)
    values = load_row(x, row * channels, channels, block)
    store_small(values, small, scale, row + start, channels, block, largest, tiny)
