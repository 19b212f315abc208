"""What doors that send need: an end for what is under way, and when to come again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from email.utils import parsedate_to_datetime
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


def retry_after(header: str) -> float | None:
    """Seconds of a Retry-After header, be it a number or a date; None if it is neither."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
