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
    """Warps for a program that works on `block` numbers: four or eight.

    Measured on an H200 with 4, 8, 16 and 32: eight are best or within 3 % for rows of 3,072 and
    12,288 numbers, since programs that wait leave room for others.
    """
    return 8 if block >= 4096 else 4
