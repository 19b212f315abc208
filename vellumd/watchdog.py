"""Tells the service manager that the daemon is ready, lives and stops.

A process that exists proves nothing: an event loop can hang, and so can the one consumer of
the queue behind a loop that turns. So the manager's watchdog is fed from the loop, and only
while every part does something or rightly waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vellumd import platform

log = logging.getLogger(__name__)

FEEDS = 3
"""Times the watchdog is fed within its limit; sd_watchdog_enabled(3) advises two or more."""
GRACE_S = 30.0
"""Seconds that a part gets beyond the time it may rightly be silent."""


@dataclass(frozen=True)
class Part:
    """A part of the daemon that must not stand still.

    `sign` is another value after each thing that the part did, None while it rightly waits.
    `silent_s`: seconds for which it may do nothing otherwise.
    """

    name: str
    sign: Callable[[], Hashable | None]
    silent_s: float


class Watchdog:
    """Watches parts; `clock` is a seam for tests."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._seen: dict[str, tuple[Hashable | None, float]] = {}

    def stuck(self) -> list[str]:
        """Names of the parts that should have done something by now."""
        return [part.name for part in self._parts if self._is_stuck(part)]

    def _is_stuck(self, part: Part) -> bool:
        now, sign = self._clock(), part.sign()
        before, since = self._seen.get(part.name, (None, now))
        if sign is None or sign != before:
            since = now
        self._seen[part.name] = (sign, since)
        return now - since > part.silent_s + GRACE_S

    async def feed(self, limit_s: float) -> None:
        """Feed the manager's watchdog, which bites after `limit_s`, until cancelled."""
        told: list[str] = []
        while True:
            stuck = self.stuck()
            if not stuck:
                platform.notify_manager("WATCHDOG=1")
            elif stuck != told:
                log.error("%s: stuck; the service manager will restart us", ", ".join(stuck))
            told = stuck
            await asyncio.sleep(limit_s / FEEDS)


@asynccontextmanager
async def serving(parts: Sequence[Part]) -> AsyncIterator[None]:
    """Tell the manager that we are ready, live as long as the block runs, and stop after it."""
    async with asyncio.TaskGroup() as tasks:
        platform.notify_manager("READY=1")
        feeding = None
        if limit_s := platform.watchdog_s():
            feeding = tasks.create_task(Watchdog(parts).feed(limit_s), name="watchdog")
        try:
            yield
        finally:
            platform.notify_manager("STOPPING=1")
            if feeding:
                feeding.cancel()
