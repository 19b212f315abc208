"""The smallest Triton kernel: whether Triton compiles and runs here.

A module of its own, because Triton wants the source of its kernels and is not installed
everywhere (torch for Windows brings none).
"""

# Triton is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl

SIZE = 64


@triton.jit
def double(source, target, size: tl.constexpr):  # noqa: D103
    offsets = tl.arange(0, size)
    tl.store(target + offsets, tl.load(source + offsets) * 2)


def runs(device: torch.device) -> bool:
    """Whether a kernel on `device` gives the right numbers."""
    numbers = torch.arange(SIZE, device=device, dtype=torch.float32)
    doubled = torch.empty_like(numbers)
    double[(1,)](numbers, doubled, size=SIZE)
    return torch.equal(doubled, numbers * 2)
