"""What an edit does when memory runs out: one rung after the other."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from vellumd import errors
from vellumd.engine.faults import is_memory
from vellumd.protocol import Report

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Rung:
    """One way to need less: `taken` holds from the rung on to the edit's end.

    `code` is the warning that records it with the job.
    """

    code: str
    taken: Callable[[], AbstractContextManager[object]]


def rungs(vae: Any, forget: Callable[[], None] = lambda: None) -> tuple[Rung, ...]:
    """From the one that costs least to the one that costs most.

    `forget` lets go of what is only kept to save time.
    """
    return (
        Rung("memory_freed", lambda: forgotten(forget)),
        Rung("vae_tiled", lambda: tiled(vae)),
    )


@contextlib.contextmanager
def forgotten(forget: Callable[[], None]) -> Iterator[None]:
    """Have `forget` called."""
    forget()
    yield


@contextlib.contextmanager
def tiled(vae: Any) -> Iterator[None]:
    """Have `vae` work tile by tile."""
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.use_tiling = False


class Ladder:
    """One edit's way down, each rung taken once; as a context, it undoes them all."""

    def __init__(self, rungs: tuple[Rung, ...], report: Report) -> None:
        self._left = list(rungs)
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
            free()
            if not self._left:
                raise errors.OutOfMemory("The edit does not fit in memory.")
            rung = self._left.pop(0)
            log.warning("out of memory: once more (%s)", rung.code)
            self._report.warn(rung.code)
            self._taken.enter_context(rung.taken())


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
