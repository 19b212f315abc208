"""The host's memory that a card copies from, and to, by itself.

`torch.empty(pin_memory=True)` has the driver make and clear all pages, one caller after the
other, at 1.4 GB/s; it rounds sizes up to powers of two and keeps what is let go of. Here threads
that fill memory make its pages, huge ones where the system has them, and it is registered once
it is full: 14.7 GB/s with the reading in it (H200, 16 cores, `pinning.json`).
"""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import logging
import mmap
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PRIVATE: dict[str, Any] = {}
"""What `mmap` is told. What processes share gets no huge pages on most systems; Windows knows no
such flags."""
if sys.platform != "win32":
    PRIVATE["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
ADVICE: tuple[int, ...] = tuple(
    getattr(mmap, name) for name in ("MADV_HUGEPAGE", "MADV_DONTFORK") if hasattr(mmap, name)
)
"""What Linux is asked for; other systems have no words for it. Huge pages, and no child gets them:
a fork would copy all that is pinned (Linux from 5.9 on), or leave the card with pages that are no
longer ours once they are written again (WSL; microsoft/WSL#11095)."""
PORTABLE = 1
"""`cudaHostRegisterPortable`: for every card of the process (CUDA Runtime API, Memory)."""


def touched(memory: Tensor) -> None:
    """Have the system make the pages of `memory` here and now."""
    memory[:: mmap.PAGESIZE] = 0


def on_host(size: int, device: torch.device, fill: Callable[[Tensor], object] = touched) -> Tensor:
    """`size` bytes of the host's memory, filled by `fill`, pinned if `device` is a card.

    A system may refuse to pin with half of the memory free (CUDA on WSL User Guide, Known
    Limitations). Copies from other memory wait and are slower, but go on. What is pinned is
    let go of with the last tensor that uses it, once no copy runs any more.

    Raises `MemoryError` where the host has not that much.
    """
    pages = _pages(size)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    fill(memory)
    if device.type == "cuda":
        pages.pin(memory.data_ptr(), device)
    return memory


def _pages(size: int) -> _Pages:
    try:
        pages = _Pages(-1, size, **PRIVATE)
    except OSError as error:
        raise MemoryError(f"The host has no {size / 1e9:.1f} GB of memory left.") from error
    if sys.platform != "win32":
        for wish in ADVICE:
            with contextlib.suppress(OSError):  # a kernel that grants it to nobody
                pages.madvise(wish)
    return pages


class _Pages(mmap.mmap):
    """Memory of its own; a tensor of it holds it, so that it ends after the last of them."""

    _pinned: tuple[int, torch.device] | None = None

    def pin(self, address: int, device: torch.device) -> None:
        """Let `device` copy from it by itself, if the system does that."""
        if refusal := register(address, len(self), device):
            _tell_slow(refusal)
        else:
            self._pinned = address, device

    def __del__(self) -> None:
        if self._pinned is not None:
            unregister(*self._pinned)


def register(address: int, size: int, device: torch.device) -> int:
    """Pin memory that the system gave; 0, or the error's number (`cudaError_t`)."""
    # A thread's card is the first one unless it is told: that would get a context for this.
    with torch.cuda.device(device):
        refusal = int(torch.cuda.cudart().cudaHostRegister(address, size, PORTABLE))
        if refusal:
            # The runtime keeps an error until somebody asks, and a kernel's launch does.
            with contextlib.suppress(RuntimeError):
                torch.empty(1, device=device).fill_(0)
    return refusal


def unregister(address: int, device: torch.device) -> None:
    """Let go of what was pinned; waits for copies that still run."""
    with contextlib.suppress(Exception), torch.cuda.device(device):  # a context that is lost
        torch.cuda.cudart().cudaHostUnregister(address)


@cache
def _tell_slow(refusal: int) -> None:
    log.warning("the system pins no more memory (CUDA error %d): copies to the card are slower",
                refusal)  # fmt: skip
