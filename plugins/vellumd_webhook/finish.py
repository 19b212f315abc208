"""Work that is finished although its caller is cancelled, if that is quick."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_S = 3.0
"""Seconds that work in flight gets when the daemon stops; a door has five to close."""


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`; a cancelled caller waits `GRACE_S` for it, then goes."""
    # A task group would cancel it together with its caller.
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=GRACE_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=GRACE_S)
        if not task.cancelled():
            task.exception()  # seen
        raise
