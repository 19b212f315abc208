"""Linears that hold their weights as FP8 (e4m3) with a scale for each row.

One form of weights, three ways to multiply with it, because cards differ in what they can
(docs/precision.md). Each is a drop-in for `torch.nn.Linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F  # noqa: N812

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest number of e4m3 without infinities (the OCP 8-bit floating point specification)."""
TINY = 2.0**-100
"""Least amplitude that is scaled: a row of zeros needs a scale that is no zero."""


def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [out, in] as e4m3 and scales [out, 1] in float32, powers of two.

    A power of two costs a floating-point format no precision (26.5 dB of noise either way,
    Gaussian weights), and gives two things: scale times weight is exact in bfloat16, and
    rows that are scaled by a power of two are rounded just as before.
    """
    amplitude = weight.abs().amax(dim=1, keepdim=True).float().clamp(min=TINY)
    mantissa, exponent = torch.frexp(amplitude / FP8_MAX)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    # By its bits: a card's power function is a few bits off a power of two.
    scale = (exponent.int() + 127 << 23).view(torch.float32)
    return (weight.float() / scale).to(FP8), scale


def by_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations `x` [tokens, in] as e4m3 and scales [tokens, 1] in float32."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=TINY) / FP8_MAX
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


@cache
def _one(device: torch.device) -> Tensor:
    """Made once: on a card it is a kernel."""
    return torch.ones((), device=device)


def whole(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [out, in] that e4m3 `weight` and `scale` stand for, rounded once."""
    return weight.to(dtype).mul_(scale)


class Fp8Linear(torch.nn.Module):
    """A linear with e4m3 `weight` [out, in], `scale` [out, 1] and a `bias` as it was.

    `weight` times `scale` are the weights. Subclasses say how to multiply.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: torch.dtype | None,
        device: torch.device | str = "meta",
    ) -> None:
        """Without values yet; `bias` is its type, None for a linear without one."""
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        weight = torch.empty(outputs, inputs, dtype=FP8, device=device)
        self.weight = Parameter(weight, requires_grad=False)
        scale = torch.empty(outputs, 1, dtype=torch.float32, device=device)
        self.scale = Parameter(scale, requires_grad=False)
        self.bias = (
            Parameter(torch.empty(outputs, dtype=bias, device=device), requires_grad=False)
            if bias is not None
            else None
        )

    @classmethod
    def like(cls, linear: torch.nn.Module) -> Self:
        """One of the size of `linear`, on its device, without its values."""
        bias = linear.bias
        dtype = bias.dtype if isinstance(bias, Tensor) else None
        weight = linear.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = weight.shape
        return cls(inputs, outputs, bias=dtype, device=weight.device)

    def extra_repr(self) -> str:
        """As `torch.nn.Linear` says it."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out] in the type of `x`."""
        raise NotImplementedError


class WeightOnly(Fp8Linear):
    """Multiplies in the type of the activations: any card, any system.

    What the predecessor did, with scales. The weights are made whole for each call, one
    linear at a time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See `Fp8Linear.forward`."""
        return F.linear(x, whole(self.weight, self.scale, x.dtype), self.bias)


class ByToken(Fp8Linear):
    """Multiplies e4m3 by e4m3: each token gets a scale of its own as it comes."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Fp8Linear.forward`."""
        small, scale = by_token(x.flatten(end_dim=-2))
        return self.multiply(small, scale, x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(
        self, x: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """The linear of e4m3 `x` [tokens, in] with `scale` [tokens, 1], in `dtype`.

        For callers that have made `x` small themselves, fused with what made it. With `out`
        [tokens, out] it is written there.
        """
        raise NotImplementedError

    def _held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weight, scale and bias: by name each is looked up in Python, 1 us of the host."""
        held: dict[str, Any] = self._parameters
        return held["weight"], held["scale"], held.get("bias")

    def _shifted(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y.add_(self.bias)


class RowGemm(ByToken):
    """The GEMM takes both scales (`torch._scaled_mm`, row-wise; SM89, SM90)."""

    def multiply(
        self, x: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """See `ByToken.multiply`."""
        weight, by_row, bias = self._held()
        # The GEMM adds a bias of 16 bits for nothing; apart, it is one more pass over y.
        complete = bias is None or dtype is torch.bfloat16
        y = torch._scaled_mm(
            x, weight.t(), scale_a=scale, scale_b=by_row.t(), bias=bias if complete else None,
            out_dtype=dtype, use_fast_accum=True, out=out,
        )  # fmt: skip
        return y if complete else self._shifted(y)


class TensorGemm(ByToken):
    """The GEMM knows no scales but 1; those of tokens and rows are applied to what it gives.

    The same numbers as `RowGemm` but for two roundings, on cards whose GEMM has a single
    scale for a tensor (SM120 with torch 2.10, pytorch/pytorch#192707). Sums of 12,288
    products of 448 by 448 are far below bfloat16's largest number.
    """

    def multiply(
        self, x: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """See `ByToken.multiply`."""
        one = _one(x.device)
        weight, by_row, _ = self._held()
        y = torch._scaled_mm(
            x, weight.t(), scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True, out=out
        )
        # In place: in float32 it would be four times y, a gigabyte of the MLP's.
        return self._shifted(y.mul_(scale).mul_(by_row.t()))
