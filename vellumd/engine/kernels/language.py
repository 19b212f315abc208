"""Triton, where it is installed: torch for Windows brings none."""

# Triton is not typed.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = tl = None

__all__ = ["Kernel", "jit", "kernel", "next_power_of_2", "tl", "warps"]

ALIGNED = 16
"""Bytes. Triton compiles anew for addresses that they do not divide: no vectors are read there."""


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`; without Triton the function itself, which nobody calls then."""
    return triton.jit(function) if triton else function


class Kernel:
    """A kernel whose parameters are tensors, then numbers, then constants.

    Triton looks at each argument of each launch to find what it has compiled for such, which is
    most of what a launch costs the host. Here that is found by the constants and the types of the
    tensors; nothing is compiled for the value of a number.
    """

    def __init__(self, function: Callable[..., Any], numbers: tuple[str, ...] = ()) -> None:
        self._function = triton.jit(function, do_not_specialize=numbers)
        self._compiled: dict[Hashable, Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor | None, ...],
        numbers: tuple[int, ...],
        constants: tuple[Hashable, ...],
        warps: int,
    ) -> None:
        """Launch it on the current card. The first tensor is never None.

        Numbers are below 2**31, as Triton takes a larger one for another type.
        """
        first = tensors[0]
        assert first is not None
        kind = (
            constants, warps, first.get_device(),
            *[None if tensor is None else tensor.dtype for tensor in tensors],
        )  # fmt: skip
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        bits = 0
        for address in addresses:
            bits |= address
        compiled = self._compiled.get(kind)
        if compiled is not None and bits % ALIGNED == 0:
            compiled[grid](*addresses, *numbers, *constants)
            return
        compiled = self._function[grid](*tensors, *numbers, *constants, num_warps=warps)
        if bits % ALIGNED == 0:
            self._compiled[kind] = compiled


def kernel(*numbers: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a `Kernel` with these `numbers`; without Triton nothing, as of `jit`."""
    return lambda function: Kernel(function, numbers) if triton else function


def next_power_of_2(count: int) -> int:
    """The size of the block of `count` numbers that a program works on."""
    return 1 << (count - 1).bit_length()


def warps(block: int) -> int:
    """Warps for a program that works on blocks of so many numbers: four or eight.

    Each has work of its own besides its numbers, which few of them do less of; but a thread's
    numbers have to fit its registers, of a row of 3,072 in four warps and of 12,288 in eight.
    """
    return 8 if block >= 4096 else 4
