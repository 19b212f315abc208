"""What an edit does when memory runs out: one rung after the other."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

from vellumd import errors, platform
from vellumd.engine.faults import is_memory
from vellumd.engine.streaming import layout, size_of, streamed
from vellumd.memory_plan import CONTEXT
from vellumd.protocol import Report

log = logging.getLogger(__name__)

T = TypeVar("T")

ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""Variables that set torch's allocator, the newer one first."""
SEGMENT = 32 << 20
"""Bytes that are more than one of its segments."""


@dataclass(frozen=True)
class Rung:
    """One way to need less: `taken` holds from the rung on to the edit's end.

    `code` is the warning that records it with the job.
    """

    code: str
    taken: Callable[[], AbstractContextManager[object]]


def rungs(parts: Any, forget: Callable[[], None] = lambda: None) -> tuple[Rung, ...]:
    """From the one that costs least to the one that costs most.

    `forget` lets go of what is only kept to save time.
    """
    found = [
        Rung("memory_freed", lambda: forgotten(forget)),
        Rung("vae_tiled", lambda: tiled(parts.vae)),
    ]
    blocks = list(parts.transformer.transformer_blocks)
    if parts.placed.blocks is None and _has_room(sum(size_of(layout(block)) for block in blocks)):
        found.append(Rung("weights_streamed", lambda: streamed(blocks, parts.device)))
    return tuple(found)


def _has_room(size: int) -> bool:
    """Whether the host has so many bytes; Linux would end the process that finds out by trying."""
    host = platform.memory()
    return not host.total or size < host.available


@cache
def expandable(device: torch.device) -> bool:
    """Have torch's allocator grow a card's segments page by page; whether nothing is lost.

    Else what is free lies in pieces, of which some fit nothing: 0.7 GB within 16 on an H200.
    WSL's driver names such segments and fails (pytorch/pytorch#192330), and so may others.
    Whoever set torch's own variable has chosen already.
    """
    if device.type != "cuda":
        return True
    if not platform.maps_card_memory():
        return False
    if chosen := [os.environ[name] for name in ALLOCATOR if name in os.environ]:
        return "expandable_segments:True" in chosen[0]
    grow = torch._C._accelerator_setAllocatorSettings
    grow("expandable_segments:True")
    try:
        torch.ones(SEGMENT, dtype=torch.uint8, device=device).sum().item()
    except RuntimeError as error:
        log.warning("the driver gives no memory by pages: %s", f"{error}".partition("\n")[0])
        grow("expandable_segments:False")
        return False
    return True


def left(device: torch.device) -> int:
    """Bytes of a card that other programs leave to this process, with what it has already.

    A desktop takes one of 12 GB; a plan that counted on it would find no memory in each edit.
    """
    free, total = torch.cuda.mem_get_info(device)
    return min(total, int(free + torch.cuda.memory_reserved(device) + CONTEXT))


def limit(device: torch.device, budget_gb: float | None) -> None:
    """Let torch's allocator refuse what goes beyond the budget.

    Else Windows' driver would spill into the host's memory, silently and slowly.
    """
    if device.type == "cuda" and budget_gb is not None:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_gb * 1e9 / total), device)


@contextlib.contextmanager
def forgotten(forget: Callable[[], None]) -> Iterator[None]:
    """Have `forget` called."""
    forget()
    yield


@contextlib.contextmanager
def tiled(vae: Any) -> Iterator[None]:
    """Have `vae` work tile by tile."""
    before = vae.use_tiling
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.use_tiling = before


class Ladder:
    """One edit's way down, each rung taken once; as a context, it undoes them all."""

    def __init__(self, rungs: Iterable[Rung], report: Report) -> None:
        self._left = iter(rungs)
        self._report = report
        self._taken = contextlib.ExitStack()

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, *_: object) -> None:
        self._taken.close()

    def climb(self, work: Callable[[], T]) -> T:
        """What `work` gives, begun anew on the next rung whenever it finds no memory.

        Raises `OutOfMemory` when no rung is left.
        """
        while True:
            # The way on is outside `except`: the exception holds the frames, and they hold
            # the tensors that must go first (pytorch/pytorch#18853).
            try:
                return work()
            except Exception as error:
                if not is_memory(error):
                    raise
                log.warning("out of memory: %s", f"{error}".partition("\n")[0])
            free()
            rung = next(self._left, None)
            if rung is None:
                raise errors.OutOfMemory("The edit does not fit in memory.")
            log.warning("once more (%s)", rung.code)
            self._report.warn(rung.code)
            self._taken.enter_context(rung.taken())


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
