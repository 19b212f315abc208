"""Triton, where it is installed: torch for Windows brings none."""

# Triton is not typed.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = tl = None

__all__ = ["jit", "next_power_of_2", "tl", "warps"]


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`; without Triton the function itself, which nobody calls then."""
    return triton.jit(function) if triton else function


def next_power_of_2(count: int) -> int:
    """The size of the block of `count` numbers that a program works on."""
    return 1 << (count - 1).bit_length()


def warps(block: int) -> int:
    """Warps for a program that works on `block` numbers: 32 a thread at most, four at least."""
    return max(4, min(16, block // 1024))
